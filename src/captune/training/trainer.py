"""The narrow `transformers.Trainer` of the methods, its arguments, and where its numbers go."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

import torch
from accelerate.data_loader import prepare_data_loader
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PrinterCallback, ProgressCallback, TrainerCallback, TrainingArguments

from captune.errors import SettingError, TrainingError
from captune.models.captioner import Captioner
from captune.runs.checkpoints import newest
from captune.runs.run_dir import RunDir
from captune.training.config import TrainingConfig
from captune.training.resume import WEIGHTS, ResumableTrainer
from captune.training.sharing import average_gradients, share, total
from captune.utils import processes
from captune.utils.progress import Bar


class MetricsCallback(TrainerCallback):
    """Writes what the trainer logs to the run's metrics.jsonl, `first_step` added to the step."""

    def __init__(self, run_dir: RunDir, first_step: int = 0) -> None:
        self.run_dir, self.first_step = run_dir, first_step

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Write the numbers among the logs."""
        numbers = {key: value for key, value in (logs or {}).items() if isinstance(value, (int, float))}
        self.run_dir.log(step=self.first_step + state.global_step, **numbers)


class BarCallback(ProgressCallback):
    """The trainer's progress bar on stderr, a line now and then without a terminal, with the newest loss or reward."""

    training_bar: Any

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Open the bar."""
        if state.is_world_process_zero:
            self.training_bar = Bar(total=state.max_steps, desc=f"training {Path(args.output_dir).name}", unit="step")
        self.current_step = 0

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Show loss and reward; transformers' own callback writes each log to stdout."""
        if self.training_bar is not None:
            shown = {key: logs[key] for key in ("loss", "reward") if logs and key in logs}
            self.training_bar.set_postfix(shown, refresh=False)


def refuse_sharding(trainer: ResumableTrainer, *, zero2: bool = False) -> None:
    """Refuse FSDP and DeepSpeed: the first process evaluates and saves whole weights.

    Args:
        trainer: as launched.
        zero2: allow DeepSpeed's stages 1 and 2, which keep the weights whole.

    Raises:
        SettingError: the weights, or the gradients that the trainer averages itself, are sharded.
    """
    stage = 0
    if trainer.is_deepspeed_enabled:
        stage = trainer.accelerator.state.deepspeed_plugin.zero_stage
        if zero2 and stage < 3:
            return
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        what = f"DeepSpeed ZeRO {stage}" if trainer.is_deepspeed_enabled else "FSDP"
        raise SettingError(
            f"{what} shards what this method reads whole: launch it with a whole copy of the model in each process, as "
            "recipes/processes/ddp.yaml does (grpo and vizer's reward objective also run with DeepSpeed ZeRO 2)"
        )


def attach_callbacks(trainer: ResumableTrainer, run_dir: RunDir, first_step: int = 0) -> None:
    """Send the trainer's numbers to metrics.jsonl and to a progress bar, and nothing to stdout."""
    trainer.run_dir = run_dir
    trainer.remove_callback(PrinterCallback)  # what `disable_tqdm` puts in
    trainer.add_callback(MetricsCallback(run_dir, first_step))
    trainer.add_callback(BarCallback())


class FiniteTrainer(ResumableTrainer):
    """`transformers.Trainer` that stops at the first loss, gradient or weight that is not finite.

    transformers logs such a loss as 0, clips with the norm NaN and continues. The norm is the one that clipping
    computes; the weights are looked at before they are saved. The weights of the step before, and its checkpoints, are
    untouched.
    """

    _losses: list[Tensor] | None = None  # of the batches of this step

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Compute loss and gradient of a batch."""
        try:
            loss = super().training_step(*args, **kwargs)
        except RuntimeError as error:
            if "probability tensor contains" not in str(error):
                raise
            self.stop("the captioner's probabilities are not finite, no caption can be sampled")
        self._losses = [*(self._losses or ()), loss]
        return loss

    def _get_grad_norm(self, *args: Any, **kwargs: Any) -> Any:
        norm = super()._get_grad_norm(*args, **kwargs)
        loss, self._losses = sum(self._losses or ()), None
        both = [torch.as_tensor(value).detach().float().reshape(()) for value in (loss, norm or 0.0)]
        loss, norm_seen = torch.stack([value.to(both[0].device) for value in both]).tolist()  # one wait for the device
        for name, value in (("loss", loss), ("gradient's norm", norm_seen)):
            if not math.isfinite(value):
                self.stop(f"the {name} is {value}")
        return norm

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        last = self.state.global_step >= self.state.max_steps
        assert self.model is not None
        if (self.control.should_save or last) and (name := not_finite(self.model.named_parameters())) is not None:
            self.stop(f"the weight {name} is not finite", done=1)
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def stop(self, what: str, done: int = 0) -> NoReturn:
        """Stop the run, weights and checkpoints untouched.

        Args:
            what: the reason.
            done: 1 where the trainer has counted the step already.

        Raises:
            TrainingError: always; it names the step and the last good checkpoint.
        """
        kept = last_checkpoint(str(self.args.output_dir))
        raise TrainingError(
            f"training stopped at step {self.state.global_step + 1 - done}: {what}; "
            + (f"the last good checkpoint is {kept}" if kept else "there is no checkpoint yet")
            + "; a lower --learning-rate, more --warmup-steps or --dtype float32 may help"
        )


def not_finite(weights: Iterable[tuple[str, Tensor]]) -> str | None:
    """Return the name of the first trainable weight with a value that is not finite; None if all are."""
    trained = {name: weight for name, weight in weights if weight.requires_grad}
    if all(torch.stack([weight.detach().isfinite().all() for weight in trained.values()]).tolist() if trained else ()):
        return None
    return next(name for name, weight in trained.items() if not bool(weight.detach().isfinite().all()))


def identity_collate(examples: list[dict[str, Any]]) -> Any:
    """Collate a batch to the list of its examples."""
    return examples


class CaptionerTrainer(FiniteTrainer):
    """`transformers.Trainer` on a captioner: a batch is a list of examples, a subclass says what the loss is."""

    def __init__(self, captioner: Captioner, dataset: Any, args: TrainingArguments, **kwargs: Any) -> None:
        super().__init__(
            model=captioner.model, args=args, train_dataset=dataset, data_collator=identity_collate, **kwargs
        )
        self.captioner = captioner

    def made_of(self) -> dict[str, Any]:
        """Return what a run that resumes must find as it was: the base's weights, too."""
        return super().made_of() | {WEIGHTS: self.captioner.base_digest()}

    def caption_loss(self, images: list[Any], examples: list[dict[str, Any]]) -> Tensor:
        """Return the loss of a batch, a scalar; `images` are those of the examples."""
        raise NotImplementedError

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
        """Return `caption_loss`, as transformers asks for it."""
        if inputs:
            loss = self.caption_loss([example["image"] for example in inputs], inputs)
        else:  # fewer images than processes
            self.follow()
            loss = torch.zeros((), device=self.accelerator.device, requires_grad=True)
        return (loss, {}) if return_outputs else loss

    # -- several processes: transformers' wrapper is not called, so that its own exchange of gradients does not happen

    def weigh(self, mean: Tensor, count: float) -> Tensor:
        """Scale a mean over `count` items of this process so that the processes' average is the mean over all items."""
        if processes.number() == 1:
            return mean
        return mean * (count * processes.number() / total(count, self.accelerator.device))

    def follow(self) -> None:
        """Take part in what the processes exchange in `caption_loss`, without an image."""
        raise NotImplementedError

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Compute loss and gradient of a batch; the gradients of several processes are averaged before the step."""
        loss = super().training_step(*args, **kwargs)
        if processes.number() > 1 and self.accelerator.sync_gradients:
            average_gradients(self.captioner.model.parameters())
        return loss

    def get_train_dataloader(self) -> Any:
        """Return the batches; of several processes each gets its share of the batch that one would take."""
        number, rank = processes.number(), processes.rank()
        if number == 1:
            return super().get_train_dataloader()
        dataset: Any = self.train_dataset
        loader: Any = DataLoader(
            range(len(dataset)),  # type: ignore[arg-type]
            batch_size=self._train_batch_size * number,
            sampler=self._get_train_sampler(),
            collate_fn=lambda batch: [dataset[index] for index in share(batch, rank, number)],
        )
        accelerator = self.accelerator
        return prepare_data_loader(
            loader,
            num_processes=1,
            process_index=0,
            rng_types=accelerator.rng_types.copy(),
            use_seedable_sampler=accelerator.use_seedable_sampler,
            data_seed=accelerator.dataloader_config.data_seed,
        )

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
            SettingError: the weights are to be sharded: this trainer calls the model beside the wrapper that does it.
        """
        arguments = training_arguments(config, **(settings or {}))
        trainer = cls(captioner, dataset, arguments, **kwargs)
        refuse_sharding(trainer)
        attach_callbacks(trainer, run_dir)
        run_dir.begin()
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
    """Return the newest complete checkpoint of a run; None before the first."""
    found = newest(Path(output))
    return str(found) if found else None
