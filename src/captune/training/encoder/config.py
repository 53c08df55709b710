"""Settings of `captune encoder train`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from captune.errors import SettingError
from captune.models.hub import DEFAULT_TEXT_ENCODER
from captune.training.config import Count, Rate, Seed, Several, Share, Weight, at_least, setting
from captune.utils.files import output_path
from captune.utils.spec import check_ranges

HARDEST = 100  # hard negatives of a caption, at most


@dataclass(kw_only=True)
class EncoderConfig:
    """Settings of `captune encoder train`; the defaults are what retrieved best on 100 photos of Flickr8k."""

    images: str = setting("images with captions to learn from: a file, a dataset", group="data")
    output: Path = setting("the folder to write, which loads like a CLIP", group="data")
    image_encoder: str = setting(
        "frozen: a folder or hub name (CLIP, SigLIP, DINOv2, ConvNeXt, ...), or efficientnet-lite2", group="model"
    )
    text_encoder: str = setting(
        "frozen: a sentence encoder's or CLIP's folder or hub name", DEFAULT_TEXT_ENCODER, group="model"
    )
    limit: Count | None = setting("use only the first N images", None, group="data")
    choice_images: str | None = setting(
        "captioned images whose recall decides which step is kept; default: some of --images, which are not trained on",
        None,
        group="data",
    )
    eval_images: str | None = setting(
        "captioned images, of no other use, on which recall is stated; default: some of --images, likewise (64 or a "
        "tenth in all, shared with the choice)",
        None,
        group="data",
    )
    features: Path | None = setting(
        "a folder that keeps the frozen encoders' vectors for trainings with other settings; default: in --output, and "
        "removed at the end",
        None,
        group="data",
    )
    overwrite: bool = setting("replace another run in --output", False, group="data")
    device: str | None = setting(
        "of the frozen encoders: cpu, cuda, ...; default: the best there is", None, group="model"
    )
    whole_image: bool = setting(
        "squeeze the whole image into a square, where the encoder's own processor crops the center", True, group="model"
    )
    width: Several = setting("D, of the common space", 512, group="model")
    dropout: Share = setting("dropout of the frozen vectors", 0.3)
    max_steps: Count = setting("optimiser steps", 120)
    batch_size: Several = setting("images per step, each with one of its captions", 256)
    learning_rate: Rate = setting("peak learning rate of AdamW, reached by warm-up, then cosine decay", 1e-3)
    warmup_steps: Annotated[int, Field(ge=0, le=10**9)] = setting("steps until the peak", 20)
    weight_decay: Weight = setting("AdamW's weight decay", 0.1)
    image_views: Several = setting(
        "views of an image that training draws from: itself and random crops, half of them mirrored unless a caption "
        "says left or right",
        1,
    )
    hard_negatives: Annotated[int, Field(ge=0, le=HARDEST)] = setting(
        "captions of other images added to the batch for each caption: those nearest to it in the frozen text encoder",
        0,
    )
    eval_steps: Count = setting("steps between two looks at the choice images, each with a checkpoint", 20)
    patience: Several = setting("looks without a better recall after which training stops", 5)
    seed: Seed = setting("random seed", 0)

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            SettingError: one is missing or out of range.
        """
        for name in ("images", "image_encoder", "text_encoder"):
            if not getattr(self, name).strip():
                raise SettingError(f"missing required option: --{name.replace('_', '-')}")
        output_path(self.output, what="runs", folder=True)
        try:
            check_ranges(self)
        except ValueError as error:
            raise SettingError(str(error)) from error
        at_least(self, 2, "batch_size")
