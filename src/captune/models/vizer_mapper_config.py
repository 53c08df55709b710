"""Settings of ViZer's mapper, which the command line reads without loading torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field


@dataclass
class MapperConfig:
    """Everything that decides what a fitted mapper's number means; saved beside its weights.

    Attributes:
        width: hidden width of the MLP h.
        depth: linear layers of h.
        feature: where F_I is taken: after the connector, or before it (the tower's output).
        pool: F_I is the mean of an image's tokens, or of each quarter of the image, laid end to end: only then can
            "left of" be distinguished from "right of".
        caption_pool: f_psi over the caption: "mean" over its tokens and end token, "last" (the end token, which has
            read the whole caption), or "tokens": each token is mapped and the results are averaged, so that the facts
            of a caption add up.
        blind: read the caption without its image in context; the score is then a function of the words alone. In
            ViZer_G the image is in context, so its information can reach the mapper beside the words.
        centred: measure the cosine from the mean image feature. The features of one encoder share a large common
            direction, which every caption predicts equally well.
        whitened: measure the cosine in F_I's first N principal directions at unit variance (0: off). A few large
            directions, such as the background, otherwise hold most of the remaining variance.
        shift: use the hidden states that predict the caption's tokens, through which a gradient can reach the words,
            in place of those at the tokens.
    """

    width: Annotated[int, Field(ge=1, le=65_536)] = field(
        default=256, metadata={"help": "hidden width of the MLP h", "group": "mapper"}
    )
    depth: Annotated[int, Field(ge=1, le=64)] = field(
        default=2, metadata={"help": "linear layers of the MLP h", "group": "mapper"}
    )
    feature: Literal["connector", "tower"] = field(
        default="connector", metadata={"help": "where F_I is taken", "group": "mapper"}
    )
    pool: Literal["mean", "quarters"] = field(
        default="mean", metadata={"help": "F_I: mean of an image's tokens, or of each quarter of it", "group": "mapper"}
    )
    caption_pool: Literal["mean", "last", "tokens"] = field(
        default="mean",
        metadata={"help": "f_psi over the caption: averaged, its end, or each token mapped", "group": "mapper"},
    )
    blind: bool = field(
        default=False, metadata={"help": "read the caption without its image in context", "group": "mapper"}
    )
    centred: bool = field(
        default=False, metadata={"help": "measure the cosine from the mean image feature", "group": "mapper"}
    )
    whitened: Annotated[int, Field(ge=0, le=65_536)] = field(
        default=0,
        metadata={
            "help": "measure it in F_I's first N principal directions, at unit variance (0: off)",
            "group": "mapper",
        },
    )
    shift: bool = field(
        default=False, metadata={"help": "use the states that predict the caption's tokens", "group": "mapper"}
    )
