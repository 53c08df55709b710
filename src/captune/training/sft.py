"""Supervised fine-tuning: maximum likelihood on images with captions, the ceiling that zero-label methods compare with.

    L(theta) = - sum_i sum_t log p_theta(y_i,t | y_i,<t, I_i)                                     HAR, equation 1

over a caption's tokens and its end token, averaged over the tokens of a batch; prompt and image tokens carry no loss.

**What learns.** By default LoRA on the language model, as in every method here; `full` trains all of its weights, head
included. `connector` trains the part between vision tower and language model as well (HAR's projector W_proj, which
starts from nothing). Both are kept in `adapter/`, as LoRA would be, as whole modules (peft's `modules_to_save`),
so that whatever takes an adapter takes these, and the base is still there to compare with. It stays in memory, too: a
fully trained language model takes its weights once more, unchanged. The vision tower never learns, and each distinct
image is encoded once per step.

**Image dropout.** With `image_dropout` p, an image is replaced by a blank one with probability p, so that the branch of
classifier-free guidance without a picture (`captune.decoding.cfg`) is trained (Kornblith et al., section 3.1).

**Batches.** An image with several references trains on one of them per visit, drawn by lot. With `group_by_length` the
data are the single pairs of image and reference, and those of similar length share a batch (transformers'
`LengthGroupedSampler`), so that less is padding.

    captune sft --model storybook --images storybook:train --seed 7 --output runs/sft
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from peft.utils.constants import DUMMY_TARGET_MODULES
from torch import Tensor, nn
from transformers.trainer_pt_utils import LengthGroupedSampler

from captune.decoding.cfg import blank
from captune.models.captioner import Captioner
from captune.models.families import attribute, lora_targets
from captune.runs.run_dir import RunDir
from captune.training.lifecycle import CaptionerTrainer, TrainingConfig, conclude, load_training_images, start
from captune.training.method import Method


@dataclass
class SFTConfig(TrainingConfig):
    """Settings of `captune sft`."""

    images: str = field(default="", metadata={"help": "images with references: a file, a dataset, storybook:train"})
    max_steps: int = field(default=300, metadata={"help": "optimiser steps"})
    batch_size: int = field(default=32, metadata={"help": "images per step"})
    learning_rate: float = field(default=1e-3, metadata={"help": "peak learning rate of AdamW; warm-up, then cosine"})
    full: bool = field(default=False, metadata={"help": "train all weights of the language model instead of LoRA"})
    connector: bool = field(default=False, metadata={"help": "train the connector (HAR's projector) as well"})
    group_by_length: bool = field(default=False, metadata={"help": "captions of similar length share a batch"})
    image_dropout: float = field(
        default=0.0, metadata={"help": "share of images replaced by a blank one, for classifier-free guidance; try 0.1"}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.image_dropout < 1:
            raise ValueError(f"image_dropout is a share of the images, from 0 to below 1, not {self.image_dropout:g}")


def add_trainable(captioner: Captioner, config: SFTConfig) -> None:
    """Puts in what learns: LoRA, or copies of whole modules beside it or in its place."""
    if not (config.full or config.connector):
        captioner.add_lora(config.lora_r, config.lora_alpha, config.lora_dropout)
        return
    core, family = captioner.core, captioner.family
    # a connector's stray parameters (LLaVA-NeXT's newline) are no modules, and stay as they are
    modules = [path for path in family.connector if isinstance(attribute(core, path), nn.Module)]
    modules = modules if config.connector else []
    if config.full:
        names = {module: name for name, module in core.named_modules()}
        modules += [family.language_model, names[core.get_output_embeddings()]]
    adapter = LoraConfig(
        r=config.lora_r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=DUMMY_TARGET_MODULES if config.full else lora_targets(core, family),
        modules_to_save=modules,
    )
    captioner.model = get_peft_model(core, adapter)
    adapter.base_model_name_or_path = captioner.name


def freeze_vision(captioner: Captioner) -> None:
    """Tower and connector, also one that an adapter brought: it is used as it is."""
    for part in captioner.family.parts(captioner.core):
        part.requires_grad_(False)


# -- batches -----------------------------------------------------------------------------------------------------------


class Pairs(torch.utils.data.Dataset):
    """A dataset's single pairs of image and reference, with the references' lengths in tokens."""

    def __init__(self, rows: Any, captioner: Captioner) -> None:
        self.rows = rows
        self.pairs = [(i, text) for i, own in enumerate(rows["references"]) for text in own]
        texts = [text for _, text in self.pairs]
        self.lengths = [len(ids) for ids in captioner.tokenizer(texts, add_special_tokens=False)["input_ids"]]

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, place: int) -> dict[str, Any]:
        row, text = self.pairs[place]
        return {**self.rows[row], "references": [text]}


class ByLength(LengthGroupedSampler):
    """transformers', with an order for each pass that does not depend on where training began."""

    def __init__(self, batch_size: int, lengths: list[int], seed: int) -> None:
        super().__init__(batch_size, lengths=lengths, generator=torch.Generator())
        self.seed = seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        self.generator.manual_seed(self.seed + epoch)


class SFTTrainer(CaptionerTrainer):
    """`transformers.Trainer` whose batch is a list of {image, references}."""

    def __init__(self, *args: Any, image_dropout: float = 0.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.image_dropout = image_dropout

    def caption_loss(self, images: list[Any], examples: list[dict[str, Any]]) -> Tensor:
        # by lot, but the same lot when a step is repeated after a resume
        lot = random.Random(f"{self.args.seed}/{self.state.global_step}")
        captions = [lot.choice(example["references"]) for example in examples]
        images = [blank() if lot.random() < self.image_dropout else image for image in images]
        return supervised_loss(self.captioner, images, captions)

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        dataset = self.train_dataset if dataset is None else dataset
        if isinstance(dataset, Pairs):
            at_once = self.args.train_batch_size * self.args.gradient_accumulation_steps
            return ByLength(at_once, dataset.lengths, self.args.seed)
        return super()._get_train_sampler(dataset)


def supervised_loss(captioner: Captioner, images: Sequence[Any], captions: Sequence[str]) -> Tensor:
    """The loss of the module, averaged over the tokens of the batch; a scalar."""
    batch = captioner.prepare(images, captions)
    batch.pop("caption_mask")
    return captioner.model(**batch, use_cache=False).loss


def run(config: SFTConfig) -> RunDir:
    """Trains, saves `adapter/`, evaluates, writes the report; see `TrainingConfig`."""
    run_dir, captioner = start(config, "sft")
    dataset = load_training_images(config, references=True)
    add_trainable(captioner, config)
    # what a trainable connector makes of an image is another thing at every step; what it reads can be shared in some
    with captioner.share_vision() if not config.connector or captioner.family.tower_features else nullcontext():
        data = Pairs(dataset, captioner) if config.group_by_length else dataset
        SFTTrainer.fit(captioner, data, config, run_dir, image_dropout=config.image_dropout)
    freeze_vision(captioner)
    what = "all weights of the language model" if config.full else "LoRA"
    method = f"supervised fine-tuning ({what}{' and the connector' if config.connector else ''})"
    return conclude(config, run_dir, captioner, row="supervised", method=method, role="supervised")


METHOD = Method(
    name="sft",
    summary="fine-tune a captioner on references (the supervised ceiling)",
    description="Supervised fine-tuning on images with reference captions: LoRA by default, all weights of the "
    "language model or of the connector on request.",
    example="captune sft --model storybook --images storybook:train --seed 7 --output runs/sft",
    config=SFTConfig,
    run=run,
)
