"""Group-relative policy optimisation of a captioner with any scorer as the reward, on `trl.GRPOTrainer`.

    A_i = (r_i - mean(r_1..r_G)) / std(r_1..r_G)                     G captions sampled for one image
    L   = - mean_i mean_t min(rho_it A_i, clip(rho_it) A_i) + beta KL(pi || pi_base)

TRL does the sampling, the advantages and the loss; `captune.training.grpo.trainer` sees to it that nothing is done twice and
that a killed run loses nothing. The reward is what is climbed, so it is no measure any more: scorers that are never
part of it watch the run (`captune.training.monitor.watch`), and three defaults keep it from going too far:

- `beta`, KL to the captioner as it comes (the base, or the base with the adapter that training starts from);
- early stopping, when the first watched scorer has not risen for `patience` evaluations;
- the adapter that is kept is the one at the evaluation where that scorer was highest.

Length: the loss is TRL's `dapo`, a mean over all tokens of a batch, so that a long caption's tokens count as much as a
short one's. A group whose captions have equal rewards has no advantage and teaches nothing; `frac_reward_zero_std` in
the metrics says how many. A caption that no part of the reward can judge (NaN) is left out of its group's mean.

`--preset cim` is CIM (Section 3): R = GRC + QIR on a retrieval corpus, K = 5, lambda(r) = 1/2^(r-1), beta = 1, G = 5.
The paper's learning rate of 1e-6 and its batches of 256 images with mini-batches of 64 are for 7B models and are in
`recipes/cim`. It does not state the KL coefficient, the sampling temperature, or whether all weights are trained; ours
are the defaults below. With `--latent` the run adds ViZer's loss L_zero on the sampled captions to the reward's.

A reward is an expression of scorers (`captune.scorers.expression`); its parts are rewards of their own with weights, so
that each is logged raw (`rewards/<scorer>/mean`) beside their sum (`reward`).

    captune grpo --model storybook --images storybook:unlabelled --reward "vizer:runs/g/mapper" --output runs/zero
    captune grpo --model storybook --adapter runs/sft/adapter --images storybook:train --reward cider --output runs/rl
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from transformers import EarlyStoppingCallback, TrainerCallback
from trl import GRPOConfig

from captune.models.captioner import Captioner
from captune.models.loading import load_adapter
from captune.models.vizer_mapper import Mapper
from captune.runs.run_dir import RunDir
from captune.scorers import check_needs, load_reward, scorer_class, split_specs
from captune.scorers.expression import Expression, parse
from captune.scorers.image.vizer_mapper import ViZerScorer
from captune.scorers.reference.cider import Cider
from captune.training.grpo.trainer import CaptionGRPOTrainer
from captune.training.lifecycle import (
    TrainingConfig,
    common_arguments,
    conclude,
    follow,
    held_out,
    last_checkpoint,
    load_training_images,
    start,
    steps_done,
)
from captune.training.method import Method
from captune.training.monitor.trainer import Watching
from captune.training.monitor.watch import Reward, Watch, default_watch

PRESETS: dict[str, dict[str, Any]] = {"captune": {}, "cim": {"num_generations": 5}}


@dataclass
class RewardConfig(TrainingConfig):
    """Settings of `captune grpo`."""

    preset: Literal["captune", "cim"] = field(default="captune", metadata={"help": "where other defaults come from"})
    reward: str = field(default="", metadata={"help": "a scorer or a weighted sum: 'cider + 0.5*clip - 0.1*length'"})
    adapter: Path | None = field(
        default=None, metadata={"help": "a PEFT adapter folder to go on from, with its own LoRA shape"}
    )
    max_steps: int = field(default=60, metadata={"help": "optimiser steps"})
    learning_rate: float = field(default=5e-4, metadata={"help": "peak learning rate of AdamW; warm-up, then cosine"})
    beta: float = field(default=0.1, metadata={"help": "weight of KL to the captioner that training starts from"})
    num_generations: int = field(default=8, metadata={"help": "captions sampled per image"})
    temperature: float = field(default=1.0, metadata={"help": "temperature of the sampled captions"})
    max_new_tokens: int = field(default=40, metadata={"help": "longest caption in tokens"})
    updates_per_generation: int = field(
        default=1, metadata={"help": "optimiser steps that share one sampling, each with images of its own"}
    )
    num_iterations: int = field(default=1, metadata={"help": "times that a sampled caption is learned from"})
    epochs: float | None = field(default=None, metadata={"help": "passes over the images; default: --max-steps"})
    gradient_checkpointing: bool = field(default=False, metadata={"help": "less memory, slower"})
    corpus: Path | None = field(default=None, metadata={"help": "retrieval corpus of --preset cim"})
    latent: Path | None = field(
        default=None, metadata={"help": "a fitted mapper: ViZer's latent loss is added to the reward's"}
    )
    latent_weight: float = field(default=0.1, metadata={"help": "weight of that loss"})
    keep_vision: bool = field(default=False, metadata={"help": "keep visual features on disk, for later passes"})
    watch: str = field(
        default="auto",
        metadata={"help": "scorers that judge the run and are not its reward: clip,self_retrieval; or none; default: "
                  "clip on storybook, else cider where --evaluation has references, else health alone"},
    )  # fmt: skip
    watch_steps: int = field(default=10, metadata={"help": "optimiser steps between its evaluations, and checkpoints"})
    patience: int = field(default=3, metadata={"help": "evaluations without a new best until the run stops (0: never)"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.preset == "cim" and not self.reward:
            if self.corpus is None:
                raise ValueError("--preset cim needs --corpus: a folder that `captune corpus build` made")
            self.reward = f"grc:{self.corpus} + qir:{self.corpus}"
        if not self.reward:
            raise ValueError("--reward is still needed: a scorer, or a weighted sum such as 'cider + 0.5*clip'")
        if self.num_generations < 2:
            raise ValueError(f"--num-generations must be at least 2, it is {self.num_generations}")
        for name in ("updates_per_generation", "num_iterations", "watch_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')} must be at least 1, it is {getattr(self, name)}")
        for spec in parse(self.reward):
            scorer_class(spec)


def prepare(reward: Expression, images: Any, run_dir: RunDir) -> None:
    """Checks a reward against the columns of the images, and freezes what must not change while it is climbed.

    CIDEr's document frequencies, where the expression names no file of them, are those of the training images'
    references; they are kept in the run directory.
    """
    check_needs([reward], {name: images[name] for name in images.column_names}, len(images))
    reward.check()
    for part, _ in reward.parts:
        if isinstance(part, Cider) and part.df is None:
            part.fit(images["references"]).save(run_dir.path / "cider-df.json")


def train_with_reward(
    captioner: Captioner,
    dataset: Any,
    rewards: Sequence[tuple[Callable[..., list[float]], float]],
    config: TrainingConfig,
    run_dir: RunDir,
    *,
    beta: float,
    num_generations: int,
    temperature: float,
    max_new_tokens: int,
    first_step: int = 0,
    watch: Watching | None = None,
    latent: tuple[Mapper, float] | None = None,
    keep_vision: Path | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    **settings: Any,
) -> None:
    """Trains the captioner's LoRA, with checkpoints in `config.output`.

    A step sees `config.batch_size` images with `num_generations` captions each.

    Args:
        dataset: columns `image` and whatever the reward needs (`references`, `scene`).
        rewards: (scorer, weight) pairs, summed; any function with TRL's reward signature is a scorer here.
        first_step: steps that the run has logged before; KL is measured from the captioner as it comes.
        watch, latent, keep_vision: see `CaptionGRPOTrainer`.
        settings: further settings of `trl.GRPOConfig`.
    """
    arguments = common_arguments(config)
    arguments["per_device_train_batch_size"] = config.batch_size * num_generations
    arguments["per_device_eval_batch_size"] = num_generations
    own = {
        "num_generations": num_generations,
        "temperature": temperature,
        "max_completion_length": max_new_tokens,
        "beta": beta,
        "loss_type": "dapo",
        "gradient_checkpointing": False,
        "disable_dropout": False,
    }
    args = GRPOConfig(**{**arguments, **own, **settings})
    trainer = CaptionGRPOTrainer(captioner, dataset, rewards, args, watch=watch, latent=latent, keep_vision=keep_vision)
    follow(trainer, run_dir, first_step)
    for callback in callbacks:
        trainer.add_callback(callback)
    trainer.train(resume_from_checkpoint=last_checkpoint(config.output))
    if "ref" in captioner.model.peft_config:  # TRL's copy of the adapter as it was, for the KL; not ours to save
        captioner.model.delete_adapter("ref")


def marked_only(
    config: TrainingConfig, captioner: Captioner, reward: Reward, run_dir: RunDir, **settings: Any
) -> dict[str, Any]:
    """A watch and the trainer's arguments for it where the steps are fixed: it looks four times, and neither stops the
    run nor cuts it back. Settings are those of `Watch`."""
    source = held_out(config)
    watch = Watch(captioner, source, default_watch(reward, source), run_dir, reward=reward, **settings)
    watch.rewind(steps_done(run_dir, config))
    every = max(1, config.max_steps // 4)
    return {"watch": watch, "eval_strategy": "steps", "eval_on_start": True, "eval_steps": every}


def watching(
    config: RewardConfig, captioner: Captioner, reward: Expression, run_dir: RunDir
) -> tuple[Watch | None, list[TrainerCallback], dict[str, Any]]:
    """The watch, with the callbacks and GRPOConfig settings that it needs: the best is kept, what stalls is stopped."""
    if config.watch == "none":
        return None, [], {}
    source = held_out(config)
    scorers = default_watch(reward, source) if config.watch == "auto" else split_specs(config.watch)
    watch = Watch(captioner, source, scorers, run_dir, reward=reward, max_new_tokens=config.max_new_tokens,
                  temperature=config.temperature)  # fmt: skip
    watch.rewind(steps_done(run_dir, config))
    steps = config.watch_steps
    settings: dict[str, Any] = {
        "eval_strategy": "steps",
        "eval_steps": steps,
        "save_steps": steps,
        "eval_on_start": True,
    }
    callbacks: list[TrainerCallback] = [LastStep()]
    if watch.primary is not None:
        settings |= {"metric_for_best_model": watch.primary, "greater_is_better": True, "load_best_model_at_end": True}
        if config.patience:
            callbacks.append(EarlyStoppingCallback(config.patience))
    return watch, callbacks, settings


class LastStep(TrainerCallback):
    """The end of training is evaluated and saved as well, wherever it falls."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step >= state.max_steps:
            control.should_evaluate = control.should_save = True


def run(config: RewardConfig) -> RunDir:
    """Trains, saves `adapter/`, evaluates, writes the report; see `TrainingConfig`."""
    run_dir, captioner = start(config, "grpo")
    reward = load_reward(config.reward)
    images = load_training_images(config, references="references" in reward.required_columns)
    for part, _ in reward.parts:
        if isinstance(part, ViZerScorer) and part.mapper.captioner_name == captioner.name:
            part.captioner = captioner  # it reads without the adapter: one model serves both
    prepare(reward, images, run_dir)
    if config.adapter is None:
        captioner.add_lora(config.lora_r, config.lora_alpha, config.lora_dropout)
    else:
        captioner.model = load_adapter(captioner.core, config.adapter, trainable=True)
    watch, callbacks, settings = watching(config, captioner, reward, run_dir)
    if config.epochs:
        settings |= {"num_train_epochs": config.epochs, "max_steps": -1}
    train_with_reward(
        captioner,
        images,
        reward.parts,
        config,
        run_dir,
        beta=config.beta,
        num_generations=config.num_generations,
        temperature=config.temperature,
        max_new_tokens=config.max_new_tokens,
        watch=watch,
        latent=(Mapper.load(config.latent).to(captioner.device), config.latent_weight) if config.latent else None,
        keep_vision=run_dir.path / "vision" if config.keep_vision else None,
        callbacks=callbacks,
        steps_per_generation=config.gradient_accumulation_steps * config.updates_per_generation,
        num_iterations=config.num_iterations,
        gradient_checkpointing=config.gradient_checkpointing,
        **settings,
    )
    begun = f", from the adapter {config.adapter}" if config.adapter else ""
    return conclude(config, run_dir, captioner, row=f"GRPO: {config.reward}", method=f"GRPO, {config.reward}{begun}")


METHOD = Method(
    name="grpo",
    summary="train a captioner with any scorer as the reward (GRPO)",
    description="Samples captions of each image, scores them, and makes the better ones likelier. The reward is a "
    "scorer or a weighted sum of scorers (captune scorers lists them); its parts are logged separately.",
    example="captune grpo --model storybook --images storybook:train --reward cider --output runs/cider",
    config=RewardConfig,
    run=run,
    presets=PRESETS,
)
