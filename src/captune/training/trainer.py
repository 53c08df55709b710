"""The narrow `transformers.Trainer` of the methods, its arguments, and where its numbers go."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from captune.errors import SettingError
from captune.models.captioner import Captioner
from captune.runs.run_dir import RunDir
from captune.training.config import TrainingConfig


class MetricsCallback(TrainerCallback):
    """Writes what the trainer logs to the run's metrics.jsonl, `first_step` added to the step."""

    def __init__(self, run_dir: RunDir, first_step: int = 0) -> None:
        self.run_dir, self.first_step = run_dir, first_step

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Write the numbers among the logs."""
        numbers = {key: value for key, value in (logs or {}).items() if isinstance(value, (int, float))}
        self.run_dir.log(step=self.first_step + state.global_step, **numbers)


class BarCallback(ProgressCallback):
    """The trainer's progress bar, on stderr where that is a terminal, with the newest loss or reward beside it."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Open the bar."""
        if state.is_world_process_zero:
            self.training_bar = tqdm(total=state.max_steps, desc="training", unit="step", disable=None)
        self.current_step = 0

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Show loss and reward; transformers' own callback writes each log to stdout."""
        if self.training_bar is not None:
            shown = {key: logs[key] for key in ("loss", "reward") if logs and key in logs}
            self.training_bar.set_postfix(shown, refresh=False)


def attach_callbacks(trainer: Trainer, run_dir: RunDir, first_step: int = 0) -> None:
    """Send the trainer's numbers to metrics.jsonl and to a progress bar, and nothing to stdout."""
    trainer.remove_callback(PrinterCallback)  # what `disable_tqdm` puts in
    trainer.add_callback(MetricsCallback(run_dir, first_step))
    trainer.add_callback(BarCallback())


def identity_collate(examples: list[dict[str, Any]]) -> Any:
    """Collate a batch to the list of its examples."""
    return examples


class CaptionerTrainer(Trainer):
    """`transformers.Trainer` on a captioner: a batch is a list of examples, a subclass says what the loss is."""

    def __init__(self, captioner: Captioner, dataset: Any, args: TrainingArguments, **kwargs: Any) -> None:
        super().__init__(
            model=captioner.model, args=args, train_dataset=dataset, data_collator=identity_collate, **kwargs
        )
        self.captioner = captioner

    def caption_loss(self, images: list[Any], examples: list[dict[str, Any]]) -> Tensor:
        """Return the loss of a batch, a scalar; `images` are those of the examples."""
        raise NotImplementedError

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
        """Return `caption_loss`, as transformers asks for it."""
        loss = self.caption_loss([example["image"] for example in inputs], inputs)
        return (loss, {}) if return_outputs else loss

    def _prepare_inputs(self, inputs: Any) -> Any:
        return inputs  # a list of examples; the captioner puts tensors on the device

    def floating_point_ops(self, inputs: Any) -> int:
        """Return 0: transformers' estimate needs tensors."""
        return 0

    @classmethod
    def fit(
        cls,
        captioner: Captioner,
        dataset: Any,
        config: TrainingConfig,
        run_dir: RunDir,
        settings: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Train; resumes from the run's last checkpoint where there is one.

        Args:
            captioner: with something trainable.
            dataset: rows of {image, ...}.
            config: the run's settings.
            run_dir: receives the metrics.
            settings: further settings of `TrainingArguments`.
            kwargs: the trainer's own.

        Raises:
            SettingError: with several processes: the loss is computed beside DDP's wrapper, which would average
                nothing.
        """
        arguments = training_arguments(config, **(settings or {}))
        if arguments.world_size > 1:
            raise SettingError(
                f"this method trains in one process, not in {arguments.world_size}: launch it without "
                "torchrun; the reward objective, on trl's GRPOTrainer, runs on several"
            )
        trainer = cls(captioner, dataset, arguments, **kwargs)
        attach_callbacks(trainer, run_dir)
        trainer.train(resume_from_checkpoint=last_checkpoint(config.output))


def common_arguments(config: TrainingConfig) -> dict[str, Any]:
    """Return the settings of `TrainingArguments` that every method, TRL's included, is run with."""
    return {
        "output_dir": str(config.output),
        "seed": config.seed,
        "max_steps": config.max_steps,
        "per_device_train_batch_size": config.batch_size,
        "gradient_accumulation_steps": config.gradient_accumulation_steps,
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": config.warmup_steps,
        "weight_decay": config.weight_decay,
        "logging_steps": max(1, min(5, config.max_steps // 20)),
        "save_steps": config.save_steps,
        "save_total_limit": 2,
        "report_to": [] if config.report_to == "none" else [config.report_to],
        "disable_tqdm": True,  # `attach_callbacks` puts in a bar of its own
        "remove_unused_columns": False,
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "use_cpu": config.device == "cpu" or not (torch.cuda.is_available() or torch.backends.mps.is_available()),
        "bf16": False,
    }


def training_arguments(config: TrainingConfig, **settings: Any) -> TrainingArguments:
    """Return transformers' arguments for a config, changed by further settings."""
    return TrainingArguments(**{**common_arguments(config), **settings})


def last_checkpoint(output: str | Path) -> str | None:
    """Return the newest checkpoint folder of a run; None before the first."""
    return get_last_checkpoint(str(output)) if Path(output).is_dir() else None
