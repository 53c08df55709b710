"""Supervised fine-tuning: maximum likelihood on images with captions, the ceiling that zero-label methods compare with.

    L = - sum_t log p(x_t | x_<t, I)          over the caption's tokens and its end token; the prompt is not trained on

LoRA on the language model, as every method here; the vision tower is frozen and each distinct image is encoded once per
step. An image with several references trains on one of them per visit, drawn by lot.

    captune sft --model storybook --images storybook:train --seed 7 --output runs/sft
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from captune.captioner import Captioner
from captune.methods.training import CaptionerTrainer, TrainingConfig, conclude, load_training_images, start
from captune.runs import RunDir


@dataclass
class SFTConfig(TrainingConfig):
    """Settings of `captune sft`."""

    images: str = field(default="", metadata={"help": "images with references: a file, a dataset, storybook:train"})
    max_steps: int = field(default=300, metadata={"help": "optimiser steps"})
    batch_size: int = field(default=32, metadata={"help": "images per step"})
    learning_rate: float = field(default=1e-3, metadata={"help": "peak learning rate of AdamW; warm-up, then cosine"})


class SFTTrainer(CaptionerTrainer):
    """`transformers.Trainer` whose batch is a list of {image, references}."""

    def caption_loss(self, images: list[Any], examples: list[dict[str, Any]]) -> Tensor:
        # by lot, but the same lot when a step is repeated after a resume
        lot = random.Random(f"{self.args.seed}/{self.state.global_step}")
        captions = [lot.choice(example["references"]) for example in examples]
        return supervised_loss(self.captioner, images, captions)


def supervised_loss(captioner: Captioner, images: Sequence[Any], captions: Sequence[str]) -> Tensor:
    """The loss of the module, averaged over the tokens of the batch; a scalar."""
    batch = captioner.prepare(images, captions)
    batch.pop("caption_mask")
    return captioner.model(**batch, use_cache=False).loss


def run(config: SFTConfig) -> RunDir:
    """Trains, saves `adapter/`, evaluates, writes the report; see `TrainingConfig`."""
    run_dir, captioner = start(config, "sft")
    dataset = load_training_images(config, references=True)
    captioner.add_lora(config.lora_r, config.lora_alpha, config.lora_dropout)
    with captioner.share_vision():
        SFTTrainer.fit(captioner, dataset, config, run_dir)
    return conclude(config, run_dir, captioner, row="supervised", method="supervised fine-tuning (LoRA)")
