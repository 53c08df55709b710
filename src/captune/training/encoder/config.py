"""Settings of `captune encoder train`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from captune.errors import SettingError
from captune.models.hub import DEFAULT_TEXT_ENCODER
from captune.training.config import Count, HeadsConfig, Several, at_least, defaults, setting

HARDEST = 100  # hard negatives of a caption, at most


@dataclass(kw_only=True)
@defaults(
    {
        "output": "the folder to write, which loads like a CLIP",
        "batch_size": "images per step, each with one of its captions",
        "eval_steps": "steps between two looks at the choice images, each with a checkpoint",
        "patience": "looks without a better recall after which training stops",
    }
)
class EncoderConfig(HeadsConfig):
    """Settings of `captune encoder train`; the defaults are what retrieved best on 100 photos of Flickr8k."""

    images: str = setting("images with captions to learn from: a file, a dataset", group="data", metavar="SOURCE")
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
        metavar="SOURCE",
    )
    eval_images: str | None = setting(
        "captioned images, of no other use, on which recall is stated; default: some of --images, likewise (64 or a "
        "tenth in all, shared with the choice)",
        None,
        group="data",
        metavar="SOURCE",
    )
    whole_image: bool = setting(
        "squeeze the whole image into a square, where the encoder's own processor crops the center", True, group="model"
    )
    width: Several = setting("D, of the common space", 512, group="model")
    image_views: Several = setting(
        "views of an image that training draws from: itself and random crops, half of them mirrored unless a caption "
        "says left or right",
        1,
    )
    hard_negatives: Annotated[int, Field(ge=0, le=HARDEST)] = setting(
        "captions of other images added to the batch for each caption: those nearest to it in the frozen text encoder",
        0,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.text_encoder.strip():
            raise SettingError("missing required option: --text-encoder")
        at_least(self, 2, "batch_size")
