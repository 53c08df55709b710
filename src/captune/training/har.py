"""HAR, the hybrid alignment and refinement pipeline: a captioner out of two frozen parts, in two stages.

    stage 1, alignment     maximum likelihood, equation 1: the projector W_proj, and the language model by LoRA or whole
    stage 2, refinement    self-critical training on a reward, equation 2 (`captune.training.scst`)

The captioner (`captune.models.prefix_captioner`): an image encoder, an MLP projector to a soft prefix, a causal
language model. Each stage is a run of its own, so that a killed pipeline resumes where it was: OUTPUT/parts, the
captioner as assembled; OUTPUT/mle, stage 1; OUTPUT/captioner, its result merged, the model of stage 2 and what KL is
to; OUTPUT/scst, stage 2; OUTPUT/adapter, its adapter for OUTPUT/captioner.

The paper does not say whether the projector learns in stage 2; here it is frozen, so that images are encoded once. It
does not state k, the projector's depth or width, learning rates or steps; the defaults are ours (`docs/prefix.md`).
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from transformers import set_seed

from captune.models.captioner import Captioner
from captune.models.prefix_captioner import assemble
from captune.runs.run_dir import RunDir
from captune.scorers import load_reward
from captune.training import scst, sft
from captune.training.config import Count, Rate, RunConfig, Several, Tokens, defaults, like, setting
from captune.training.lifecycle import claim_run
from captune.training.method import Method
from captune.utils import processes
from captune.utils.files import replacing_folder

PARTS = ("parts", "mle", "captioner", "scst")


@dataclass(kw_only=True)
@defaults(
    {
        "output": "the folder to write",
        "images": "images with references: a file, a dataset, storybook:train",
        "train_all_weights": "stage 1 trains all of the language model instead of LoRA",
    },
)
class HARConfig(RunConfig):
    """Settings of `captune har`; those of a stage that are not here are the defaults of `captune sft` and `scst`."""

    image_encoder: str = setting("a CLIP, SigLIP or DINOv2 folder or hub name, or storybook-clip", group="model")
    language_model: str = setting("a causal language model's folder or hub name, or storybook-lm", group="model")
    num_prefix_tokens: Several = setting("k, tokens of the soft prefix", 16, group="model")
    image_feature: Literal["pooled", "patches"] = setting(
        "v: the encoder's one embedding, or its patches averaged over a grid", "pooled", group="model"
    )
    mle_steps: Count = setting("optimiser steps of stage 1", 600, group="stage 1")
    mle_batch_size: Several = setting("images per step of stage 1", 32, group="stage 1")
    mle_learning_rate: Rate = setting("peak learning rate of stage 1", 1e-3, group="stage 1")
    scst_steps: Count = setting("optimiser steps of stage 2", 60, group="stage 2")
    scst_batch_size: Several = setting("images per step of stage 2", 16, group="stage 2")
    scst_learning_rate: Rate = setting("peak learning rate of stage 2", 5e-4, group="stage 2")
    reward: str = like(
        scst.SCSTConfig, "reward", help="R of stage 2: 'cider', 'cider + 0.5*clip', ...", group="stage 2"
    )
    baseline: Literal["greedy", "mean"] = like(scst.SCSTConfig, "baseline", group="stage 2")
    num_generations: Several = like(scst.SCSTConfig, "num_generations", group="stage 2")
    max_new_tokens: Tokens = like(scst.SCSTConfig, "max_new_tokens", group="stage 2")
    accept_reward: bool = like(scst.SCSTConfig, "accept_reward", group="stage 2")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.stage_1(), self.stage_2()  # refuse what a stage refuses before the first one begins

    def _common(self) -> dict[str, Any]:
        shared = (field.name for field in fields(RunConfig))
        return {name: getattr(self, name) for name in shared if name not in ("output", "train_all_weights")}

    def stage_1(self) -> sft.SFTConfig:
        """Return the settings of stage 1, maximum likelihood."""
        return sft.SFTConfig(
            model=str(self.output / "parts"),
            output=self.output / "mle",
            train_connector=True,
            train_all_weights=self.train_all_weights,
            max_steps=self.mle_steps,
            batch_size=self.mle_batch_size,
            learning_rate=self.mle_learning_rate,
            **self._common(),
        )

    def stage_2(self) -> scst.SCSTConfig:
        """Return the settings of stage 2, self-critical training."""
        return scst.SCSTConfig(
            model=str(self.output / "captioner"),
            output=self.output / "scst",
            reward=self.reward,
            baseline=self.baseline,
            max_steps=self.scst_steps,
            batch_size=self.scst_batch_size,
            learning_rate=self.scst_learning_rate,
            num_generations=self.num_generations,
            max_new_tokens=self.max_new_tokens,
            accept_reward=self.accept_reward,
            **self._common(),
        )


def run(config: HARConfig) -> RunDir:
    """Run both stages; what is finished is not done again, unless `overwrite` is set."""
    run_dir = claim_run(config, "har", extended_by=("scst_steps",), parts=PARTS)
    if run_dir.done:
        return run_dir
    if not run_dir.resumes:
        load_reward(config.reward).check()  # of stage 2, before stage 1 begins
    parts, merged = run_dir.path / "parts", run_dir.path / "captioner"
    mle, refined = RunDir(run_dir.path / "mle"), RunDir(run_dir.path / "scst")
    model = processor = None
    if not (run_dir.resumes and _saved(parts)):
        set_seed(config.seed)
        model, processor = assemble(
            config.image_encoder,
            config.language_model,
            num_prefix_tokens=config.num_prefix_tokens,
            image_feature=config.image_feature,
        )
    run_dir.begin()
    if model is not None:
        processes.on_first(_save, model, processor, parts)
    if not mle.finished:
        sft.run(config.stage_1())
    processes.on_first(_merge, config, parts, mle, merged)
    if not refined.finished or refined.config["max_steps"] != config.scst_steps:
        scst.run(config.stage_2())
    processes.on_first(_finish, config, run_dir, mle, refined, merged)
    return run_dir


def _merge(config: HARConfig, parts: Path, mle: RunDir, merged: Path) -> None:
    if not _saved(merged):
        captioner = Captioner.load(parts, adapter=mle.adapter, dtype=config.dtype, device="cpu")
        captioner.merge_adapter()
        _save(captioner.core, captioner.processor, merged)


def _finish(config: HARConfig, run_dir: RunDir, mle: RunDir, refined: RunDir, merged: Path) -> None:
    from captune.report import render

    with replacing_folder(run_dir.adapter) as folder:
        shutil.copytree(refined.adapter, folder, dirs_exist_ok=True)
    names = {"base": "fresh projector", "supervised": "maximum likelihood"}
    after = [row for row in refined.scores()["rows"] if row["name"] != "base"]  # stage 2 begins where stage 1 ended
    for row in (*mle.scores()["rows"], *after):
        run_dir.add_scores(
            names.get(row["name"], row["name"]),
            row["scores"],
            role=row.get("role"),
            source=mle.scores().get("source"),
            **{key: row[key] for key in ("trained_on",) if key in row},
        )
    method = f"HAR, {config.image_encoder} + {config.language_model}: maximum likelihood, then SCST on {config.reward}"
    run_dir.finish(run_dir.card(method=method, base=str(merged), data=config.images))
    render([mle.path, refined.path], run_dir.path / "report.html")


def _saved(folder: Path) -> bool:
    return (folder / "processor_config.json").is_file() or (folder / "preprocessor_config.json").is_file()


def _save(model: Any, processor: Any, folder: Path) -> None:
    with replacing_folder(folder) as temporary:
        model.save_pretrained(temporary)
        processor.save_pretrained(temporary)


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
