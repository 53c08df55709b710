"""HAR, the hybrid alignment and refinement pipeline: a captioner out of two frozen parts, in two stages.

    stage 1, alignment     maximum likelihood, equation 1: the projector W_proj, and the language model by LoRA or whole
    stage 2, refinement    self-critical training on a reward, equation 2 (`captune.training.scst`)

The captioner is `captune.models.prefix_captioner`: an image encoder, an MLP projector to a soft prefix, a causal language model. Each
stage is a run of its own, so that a killed pipeline goes on where it was:

    <output>/parts       the captioner as it is put together, its projector fresh
    <output>/mle         stage 1, a run of `captune sft`
    <output>/captioner   the captioner after stage 1, its adapter merged: the model of stage 2, and what KL is to
    <output>/scst        stage 2, a run of `captune scst`
    <output>/adapter     stage 2's adapter, for <output>/captioner

The paper does not say whether the projector learns in stage 2; here it is frozen, so that images are encoded once.
It does not state k, the projector's depth or width, learning rates or steps; the defaults are ours (`docs/prefix.md`).

    captune har --image-encoder storybook-clip --language-model storybook-lm --images storybook:train --output runs/har
"""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from transformers import set_seed

from captune.models.captioner import Captioner
from captune.models.prefix_captioner import assemble
from captune.runs.run_dir import RunDir
from captune.training import scst, sft
from captune.training.method import Method


@dataclass
class HARConfig:
    """Settings of `captune har`; those of a stage that are not here are the defaults of `captune sft` and `scst`."""

    image_encoder: str = field(metadata={"help": "a CLIP, SigLIP or DINOv2 folder or hub name, or storybook-clip"})
    language_model: str = field(metadata={"help": "a causal language model's folder or hub name, or storybook-lm"})
    output: Path = field(metadata={"help": "the folder to write"})
    images: str = field(metadata={"help": "images with references: a file, a dataset, storybook:train"})
    seed: int = field(default=0, metadata={"help": "seed of everything that is drawn by lot"})
    limit: int | None = field(default=None, metadata={"help": "use only the first N images"})
    evaluation: str | None = field(
        default=None, metadata={"help": "images to caption before and after; default: storybook:val, or 64 of --images"}
    )
    num_prefix_tokens: int = field(default=16, metadata={"help": "k, tokens of the soft prefix"})
    image_feature: Literal["pooled", "patches"] = field(
        default="pooled", metadata={"help": "v: the encoder's one embedding, or its patches averaged over a grid"}
    )
    full: bool = field(default=False, metadata={"help": "stage 1 trains all of the language model instead of LoRA"})
    mle_steps: int = field(default=600, metadata={"help": "optimiser steps of stage 1"})
    mle_batch_size: int = field(default=32, metadata={"help": "images per step of stage 1"})
    mle_learning_rate: float = field(default=1e-3, metadata={"help": "peak learning rate of stage 1"})
    reward: str = field(default="cider", metadata={"help": "R of stage 2: 'cider', 'cider + 0.5*clip', ..."})
    baseline: Literal["greedy", "mean"] = field(default="greedy", metadata={"help": "b of stage 2"})
    scst_steps: int = field(default=60, metadata={"help": "optimiser steps of stage 2"})
    scst_batch_size: int = field(default=16, metadata={"help": "images per step of stage 2"})
    scst_learning_rate: float = field(default=5e-4, metadata={"help": "peak learning rate of stage 2"})
    num_generations: int = field(default=5, metadata={"help": "captions sampled per image in stage 2"})
    max_new_tokens: int = field(default=40, metadata={"help": "longest caption in tokens"})
    gradient_accumulation_steps: int = field(default=1, metadata={"help": "batches per optimiser step"})
    save_steps: int = field(default=50, metadata={"help": "steps between checkpoints"})
    lora_r: int = field(default=32, metadata={"help": "rank of LoRA"})
    lora_alpha: int = field(default=64, metadata={"help": "alpha of LoRA"})
    lora_dropout: float = field(default=0.1, metadata={"help": "dropout of LoRA"})
    dtype: str = field(default="auto", metadata={"help": "auto, float32, bfloat16 or float16"})
    device: str | None = field(default=None, metadata={"help": "cpu, cuda, ...; default: the best there is"})
    overwrite: bool = field(default=False, metadata={"help": "start afresh in an output that holds another run"})

    def __post_init__(self) -> None:
        for name in ("num_prefix_tokens", "mle_steps", "scst_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')} must be at least 1, it is {getattr(self, name)}")
        self.stage_1(), self.stage_2()  # what a stage refuses is said before the first one begins

    def _common(self) -> dict[str, Any]:
        names = ("images", "seed", "limit", "evaluation", "gradient_accumulation_steps", "save_steps", "lora_r",
                 "lora_alpha", "lora_dropout", "dtype", "device", "overwrite")  # fmt: skip
        return {name: getattr(self, name) for name in names}

    def stage_1(self) -> sft.SFTConfig:
        return sft.SFTConfig(
            model=str(self.output / "parts"), output=self.output / "mle", connector=True, full=self.full,
            max_steps=self.mle_steps, batch_size=self.mle_batch_size, learning_rate=self.mle_learning_rate,
            **self._common(),
        )  # fmt: skip

    def stage_2(self) -> scst.SCSTConfig:
        return scst.SCSTConfig(
            model=str(self.output / "captioner"), output=self.output / "scst", reward=self.reward,
            baseline=self.baseline, max_steps=self.scst_steps, batch_size=self.scst_batch_size,
            learning_rate=self.scst_learning_rate, num_generations=self.num_generations,
            max_new_tokens=self.max_new_tokens, **self._common(),
        )  # fmt: skip


def run(config: HARConfig) -> RunDir:
    """Both stages; what is finished is not done again, unless `overwrite` says so."""
    from captune.report import render

    run_dir = RunDir(config.output)
    resume = (run_dir.path / "config.yaml").is_file() and not config.overwrite
    run_dir.start({"method": "har", **asdict(config)}, resume=resume, overwrite=config.overwrite)
    parts, merged = run_dir.path / "parts", run_dir.path / "captioner"
    mle, refined = RunDir(run_dir.path / "mle"), RunDir(run_dir.path / "scst")
    if config.overwrite:
        for folder in (parts, merged, mle.path, refined.path):
            shutil.rmtree(folder, ignore_errors=True)
    if not _saved(parts):
        set_seed(config.seed)
        model, processor = assemble(
            config.image_encoder,
            config.language_model,
            num_prefix_tokens=config.num_prefix_tokens,
            image_feature=config.image_feature,
        )
        _save(model, processor, parts)
    if not mle.finished:
        sft.run(config.stage_1())
    if not _saved(merged):
        captioner = Captioner.load(parts, adapter=mle.adapter, dtype=config.dtype, device="cpu")
        captioner.merge_adapter()
        _save(captioner.core, captioner.processor, merged)
    if not refined.finished:
        scst.run(config.stage_2())
    shutil.copytree(refined.adapter, run_dir.adapter, dirs_exist_ok=True)
    names = {"base": "fresh projector", "supervised": "maximum likelihood"}
    after = [row for row in refined.scores()["rows"] if row["name"] != "base"]  # stage 2 begins where stage 1 ended
    for row in (*mle.scores()["rows"], *after):
        run_dir.add_scores(
            names.get(row["name"], row["name"]),
            row["scores"],
            role=row.get("role"),
            source=mle.scores().get("source"),
        )
    method = f"HAR, {config.image_encoder} + {config.language_model}: maximum likelihood, then SCST on {config.reward}"
    run_dir.finish(run_dir.card(method=method, base=str(merged), data=config.images))
    render([mle.path, refined.path], run_dir.path / "report.html")
    return run_dir


def _saved(folder: Path) -> bool:
    return (folder / "processor_config.json").is_file() or (folder / "preprocessor_config.json").is_file()


def _save(model: Any, processor: Any, folder: Path) -> None:
    """The processor last: a folder that has one is whole."""
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


METHOD = Method(
    name="har",
    summary="build a captioner of an image encoder and a language model (HAR)",
    description="Puts a frozen image encoder, a projector and a causal language model together, trains them on "
    "references by maximum likelihood, then refines them by self-critical training on a reward.",
    example="captune har --image-encoder storybook-clip --language-model storybook-lm --images storybook:train "
    "--output runs/har",
    config=HARConfig,
    run=run,
)
