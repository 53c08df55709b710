"""Settings of `captune sft`."""

from __future__ import annotations

from dataclasses import dataclass

from captune.training.config import Share, TrainingConfig, defaults, setting
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


METHOD = Method(
    name="sft",
    summary="fine-tune a captioner on references (the supervised ceiling)",
    description="Supervised fine-tuning on images with reference captions: LoRA by default, all weights of the "
    "language model or of the connector on request.",
    example="captune sft --model storybook --images storybook:train --seed 7 --output runs/sft",
    config=SFTConfig,
    run="captune.training.sft.train:run",
)
