"""Settings of `captune sft`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from captune.errors import SettingError
from captune.training.config import Several, Share, TrainingConfig, defaults, setting
from captune.training.method import Method


@dataclass(kw_only=True)
@defaults(
    {"images": "images with references: a file, a dataset, storybook:train"},
    images="",
    max_steps=300,
    batch_size=32,
    learning_rate=1e-3,
)
class SFTConfig(TrainingConfig):
    """Settings of `captune sft`."""

    train_connector: bool = setting(
        "train the connector (HAR's projector) as well", False, group="adapter", aliases=("connector",)
    )
    group_by_length: bool = setting("captions of similar length share a batch", False)
    image_dropout: Share = setting(
        "share of images replaced by a blank one, for classifier-free guidance; try 0.1", 0.0
    )
    image_views: Several = setting(
        "views of an image that training draws from: itself and random crops, half of them mirrored unless the caption "
        "says left or right; the same ones at every visit, so that --cache-features holds",
        1,
    )
    condition: str | None = setting(
        "the column of --images, such as level, whose value is put before the prompt, for captune caption --condition",
        None,
    )
    weights: str | None = setting("the column of --images whose numbers weigh the captions in the loss", None)
    texts: str | None = setting(
        "captions without images, from which the first --text-steps learn how captions are worded: a caption file",
        None,
        group="text",
    )
    text_steps: Annotated[int, Field(ge=0, le=10**9)] = setting(
        "steps, of those in all, that read --texts in place of images", 0, group="text"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if bool(self.texts) != bool(self.text_steps):
            given, lacking = ("--texts", "--text-steps") if self.texts else ("--text-steps", "--texts")
            raise SettingError(f"{given} needs {lacking}: the captions, and how many steps read them")
        if self.text_steps >= self.max_steps:
            raise SettingError(f"--text-steps {self.text_steps} leaves none of {self.max_steps} steps for images")


METHOD = Method(
    name="sft",
    summary="fine-tune a captioner on references (the supervised ceiling)",
    description="Supervised fine-tuning on images with reference captions: LoRA by default, all weights of the "
    "language model or of the connector on request.",
    example="captune sft --model storybook --images storybook:train --seed 7 --output runs/sft",
    config=SFTConfig,
    run="captune.training.sft.train:run",
)
