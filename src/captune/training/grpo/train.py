"""Group-relative policy optimisation of a captioner with any scorer as the reward, on `trl.GRPOTrainer`.

    A_i = (r_i - mean(r_1..r_G)) / std(r_1..r_G)                     G captions sampled for one image
    L   = - mean_i mean_t min(rho_it A_i, clip(rho_it) A_i) + beta KL(pi || pi_start)

TRL does the sampling, the advantages and the loss (`dapo`: a mean over all tokens of a batch). The reward is an
expression of scorers, each logged raw (`rewards/SCORER/mean`) beside their sum; a caption that none can judge (NaN) is
left out of its group's mean. Held-out scorers monitor the run (`captune.training.monitor`), stop it and keep the best.

`--preset cim` is CIM (Section 3): R = GRC + QIR on a retrieval corpus, K = 5, lambda(r) = 1/2^(r-1), G = 5. The paper
does not state the KL coefficient, the sampling temperature, or whether all weights are trained; ours are the defaults.
With `--latent-mapper` the run adds ViZer's loss L_zero on the sampled captions. See docs/methods/grpo.md.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from trl import GRPOConfig

from captune.errors import SettingError
from captune.models.captioner import Captioner
from captune.models.vizer_mapper import Mapper
from captune.runs.run_dir import RunDir
from captune.scorers import load_reward
from captune.training.config import TrainingConfig
from captune.training.gate import check_reward
from captune.training.grpo.config import CaptionGRPOConfig
from captune.training.grpo.trainer import CaptionGRPOTrainer
from captune.training.lifecycle import (
    claim_run,
    finish_run,
    load_captioner,
    load_training_images,
    make_trainable,
    require_images,
)
from captune.training.monitor.setup import build_monitor
from captune.training.monitor.trainer import Monitor
from captune.training.reward import prepare_reward
from captune.training.trainer import attach_callbacks, common_arguments, last_checkpoint, refuse_sharding


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
    monitor: Monitor | None = None,
    latent: tuple[Mapper, float] | None = None,
    keep_vision: Path | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    **settings: Any,
) -> None:
    """Train what is trainable in the captioner, with checkpoints in `config.output`.

    A step sees `config.batch_size` images with `num_generations` captions each.

    Args:
        captioner: with a trainable adapter; KL is measured from it as it comes.
        dataset: columns `image` and whatever the reward needs (`references`, `scene`).
        rewards: (scorer, weight) pairs, summed; any function with TRL's reward signature is a scorer here.
        config: the run's settings.
        run_dir: receives the metrics.
        beta: weight of KL.
        num_generations: captions sampled per image.
        temperature: of the samples.
        max_new_tokens: longest caption in tokens.
        first_step: steps that the run has logged before.
        monitor: see `CaptionGRPOTrainer`.
        latent: see `CaptionGRPOTrainer`.
        keep_vision: see `CaptionGRPOTrainer`.
        callbacks: of the trainer.
        settings: further settings of `trl.GRPOConfig`.
    """
    arguments = common_arguments(config)
    arguments["per_device_train_batch_size"] = config.batch_size * num_generations
    arguments["per_device_eval_batch_size"] = num_generations
    sampling = {
        "num_generations": num_generations,
        "temperature": temperature,
        "max_completion_length": max_new_tokens,
        "beta": beta,
        "loss_type": "dapo",
        "gradient_checkpointing": False,
        "disable_dropout": False,
    }
    args = GRPOConfig(**{**arguments, **sampling, **settings})
    trainer = CaptionGRPOTrainer(
        captioner,
        dataset,
        rewards,
        args,
        monitor=monitor,
        latent=latent,
        keep_vision=keep_vision,
        cache_features=config.cache_features,
    )
    refuse_sharding(trainer, zero2=True)
    attach_callbacks(trainer, run_dir, first_step)
    for callback in callbacks:
        trainer.add_callback(callback)
    run_dir.begin()
    trainer.train(resume_from_checkpoint=last_checkpoint(config.output))
    if "ref" in captioner.model.peft_config:  # TRL's copy of the adapter as it was, for the KL; not ours to save
        captioner.model.delete_adapter("ref")


def run(config: CaptionGRPOConfig) -> RunDir:
    """Train, save `adapter/`, evaluate, write the report."""
    run_dir = claim_run(config, "grpo", extended_by=() if config.epochs else ("max_steps",))
    if run_dir.done:
        return run_dir
    captioner = load_captioner(config)
    reward = load_reward(config.reward)
    images = load_training_images(config, references="references" in reward.required_columns)
    require_images(images, config, config.steps_per_generation)
    prepare_reward(reward, images, run_dir, captioner)
    make_trainable(captioner, config)
    monitor, callbacks, settings = build_monitor(config, captioner, reward, run_dir)
    if config.epochs:
        settings |= {"num_train_epochs": config.epochs, "max_steps": -1}
    latent = None
    if config.latent_mapper:
        mapper = Mapper.load(config.latent_mapper)
        mapper.check_captioner(captioner)
        if mapper.prompt not in (None, captioner.prompt):
            raise SettingError(
                f"--latent-mapper {config.latent_mapper} was fitted under the prompt {mapper.prompt!r}, and the "
                f"captioner is asked with {captioner.prompt!r}: --prompt {shlex.quote(str(mapper.prompt))} is the one"
            )
        latent = (mapper.to(captioner.device), config.latent_weight)
    check_reward(captioner, images, reward.parts, config, run_dir, name=config.reward)
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
        monitor=monitor,
        latent=latent,
        keep_vision=run_dir.path / "vision" if config.keep_vision else None,
        callbacks=callbacks,
        steps_per_generation=config.gradient_accumulation_steps * config.steps_per_generation,
        num_iterations=config.num_iterations,
        gradient_checkpointing=config.gradient_checkpointing,
        **settings,
    )
    if monitor is not None:
        monitor.say_none_better()
    start = f", from the adapter {config.adapter}" if config.adapter else ""
    reads = ", which reads the references" if "references" in reward.required_columns else ""
    method = f"GRPO, {config.reward}{reads}{start}"
    return finish_run(config, run_dir, captioner, row=f"GRPO: {config.reward}", method=method)
