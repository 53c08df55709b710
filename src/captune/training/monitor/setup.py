"""The monitor of a run, with the trainer's settings and callbacks that it needs."""

from __future__ import annotations

from typing import Any, Protocol

from transformers import EarlyStoppingCallback, TrainerCallback

from captune.models.captioner import Captioner
from captune.runs.run_dir import RunDir
from captune.scorers import load_scorer, split_specs
from captune.training.config import TrainingConfig
from captune.training.lifecycle import evaluation_source
from captune.training.monitor.held_out import (
    HeldOutMonitor,
    Reward,
    check_served,
    default_scorers,
    held_out_images,
    refuse_rewarded,
)


class MonitorSettings(Protocol):
    """What `build_monitor` reads of a config besides what every method has."""

    watch: str
    eval_steps: int
    early_stopping_patience: int
    max_new_tokens: int
    temperature: float


class Between(TrainerCallback):
    """What transformers does not: checkpoints between the evaluations, and both at the end, wherever it falls.

    To keep the best checkpoint transformers wants one at each evaluation, and takes no other interval.

    Args:
        save_steps: steps between checkpoints.
    """

    def __init__(self, save_steps: int) -> None:
        self.save_steps = save_steps

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ask for what is due."""
        if state.global_step >= state.max_steps:
            control.should_evaluate = control.should_save = True
        if state.global_step % self.save_steps == 0:
            control.should_save = True


def monitor_without_stopping(
    config: TrainingConfig, captioner: Captioner, reward: Reward, run_dir: RunDir, **settings: Any
) -> dict[str, Any]:
    """Build a monitor that evaluates about four times, and neither stops the run nor chooses a checkpoint.

    Args:
        config: the run's settings.
        captioner: what is trained.
        reward: what the run optimises.
        run_dir: the run.
        settings: further ones of `HeldOutMonitor`.

    Returns:
        ``monitor``, and the trainer's arguments for it; nothing watches with ``--watch none``.
    """
    if (watch := getattr(config, "watch", "auto")) == "none":
        return {"monitor": None}
    source = evaluation_source(config)
    monitor = HeldOutMonitor(captioner, source, _scorers(watch, reward, source), run_dir, reward=reward, **settings)
    run_dir.when_begun(lambda: monitor.rewind(run_dir.steps_done(config.max_steps)))
    every = max(1, config.max_steps // 4)
    return {"monitor": monitor, "eval_strategy": "steps", "eval_on_start": True, "eval_steps": every}


def build_monitor(
    config: Any, captioner: Captioner, reward: Reward, run_dir: RunDir
) -> tuple[HeldOutMonitor | None, list[TrainerCallback], dict[str, Any]]:
    """Build the monitor that keeps the best checkpoint and stops a run that no longer gains.

    Args:
        config: a `TrainingConfig` that has `MonitorSettings`, too.
        captioner: what is trained.
        reward: what the run optimises.
        run_dir: the run.

    Returns:
        The monitor, None with ``--watch none``; the trainer's callbacks; its arguments.
    """
    monitoring: MonitorSettings = config
    if monitoring.watch == "none":
        return None, [], {}
    source = evaluation_source(config)
    scorers = _scorers(monitoring.watch, reward, source)
    monitor = HeldOutMonitor(
        captioner,
        source,
        scorers,
        run_dir,
        reward=reward,
        max_new_tokens=monitoring.max_new_tokens,
        temperature=monitoring.temperature,
    )
    run_dir.when_begun(lambda: monitor.rewind(run_dir.steps_done(config.max_steps)))
    settings: dict[str, Any] = {
        "eval_strategy": "steps",
        "eval_steps": monitoring.eval_steps,
        "save_steps": monitoring.eval_steps,
        "eval_on_start": True,
    }
    callbacks: list[TrainerCallback] = [Between(config.save_steps)]
    if monitor.primary is not None:
        settings |= {
            "metric_for_best_model": monitor.primary,
            "greater_is_better": monitor.greater_is_better,
            "load_best_model_at_end": True,
        }
        if monitoring.early_stopping_patience:
            callbacks.append(EarlyStoppingCallback(monitoring.early_stopping_patience))
    return monitor, callbacks, settings


def check_watch(config: Any, reward: Reward) -> None:
    """Refuse what cannot watch a run as far as that is known without its captioner: a pipeline asks before it begins.

    Args:
        config: a `RunConfig` that has `watch`.
        reward: what the run is to optimise.

    Raises:
        EvaluationError: a scorer is part of the reward, or the held-out images are a stream.
        MissingColumn: the held-out images lack what a scorer needs.
        ScorerError: what a scorer runs on is missing.
    """
    if config.watch == "none":
        return
    scorers = [] if config.watch == "auto" else [load_scorer(spec) for spec in split_specs(config.watch)]
    refuse_rewarded(scorers, reward)
    held_out = held_out_images(evaluation_source(config), decode=False)
    columns = dict.fromkeys(held_out.column_names, ())
    if "references" in columns and not all(held_out["references"]):
        del columns["references"]
    check_served(scorers, columns, 0)


def _scorers(watch: str, reward: Reward, source: str) -> list[str]:
    return default_scorers(reward, source) if watch == "auto" else split_specs(watch)
