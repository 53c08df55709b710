"""Training that a killed process does not lose: complete checkpoints, exact resumption, SIGTERM, a full disk.

transformers and trl write a checkpoint's files; here it is marked as complete when all of them are on the disk, and
only then an older one is removed. What their trainers keep in memory between two log entries is part of it.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from captune.data.columns import content_digest
from captune.errors import RunError, first_line
from captune.runs import checkpoints
from captune.runs.run_dir import RunDir
from captune.utils.files import discard, disk_failed, sync
from captune.utils.memory import forget
from captune.utils.processes import TERMINATED, on_sigterm

logger = logging.getLogger(__name__)


class Resumption(TrainerCallback):
    """Puts back what the trainer had in memory, when its loop has reset it; saves and ends after SIGTERM."""

    def __init__(self, trainer: ResumableTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Put back what the checkpoint holds."""
        self.trainer.restore()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ask for a checkpoint after SIGTERM."""
        if self.trainer.terminated:
            control.should_save = True

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ask for a checkpoint after SIGTERM."""
        self.on_step_end(args, state, control)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """End the process after SIGTERM."""
        if self.trainer.terminated:
            logger.warning(
                "stopped by SIGTERM: step %d is saved, and the same command resumes from it", state.global_step
            )
            raise SystemExit(TERMINATED)


class ResumableTrainer(Trainer):
    """`transformers.Trainer` with complete checkpoints; for subclasses of it."""

    run_dir: RunDir | None = None
    _resumed: Path | None = None
    _stopped: bool = False
    _started: float = 0.0

    _made_of: dict[str, Any] | None = None

    def made_of(self) -> dict[str, Any]:
        """Return what a run that resumes must find as it was, by its name in messages; None is not compared.

        It is asked before a checkpoint is read.
        """
        rows = getattr(self.train_dataset, "rows", self.train_dataset)  # those of single pairs
        return {IMAGES: content_digest(rows)}

    # -- saving ----------------------------------------------------------------------------------------------------

    def save_more(self, folder: Path) -> None:
        """Write further files into a checkpoint, before it is marked as complete."""

    def accumulated(self) -> dict[str, Any]:
        """Return what is in memory between two log entries, as JSON holds it."""
        return {
            "loss": self._tr_loss.item(),
            "total_loss": self._total_loss_scalar,
            "logged_at": self._globalstep_last_logged,
            "seconds": time.time() - self._started,
            "made_of": self._made_of,
            "patience": [early.early_stopping_patience_counter for early in self._early_stopping()],
        }

    def put_back(self, values: dict[str, Any]) -> None:
        """Put back what `accumulated` returned."""
        self._tr_loss.fill_(values["loss"])
        self._total_loss_scalar = values["total_loss"]
        self._globalstep_last_logged = values["logged_at"]
        self._initial_global_step = 0
        self._started -= values["seconds"]
        for early, counter in zip(self._early_stopping(), values.get("patience", ()), strict=False):
            if counter < early.early_stopping_patience:  # a run that it has stopped is extended on purpose
                early.early_stopping_patience_counter = counter

    def _early_stopping(self) -> list[EarlyStoppingCallback]:
        return [one for one in self.callback_handler.callbacks if isinstance(one, EarlyStoppingCallback)]

    def restore(self) -> None:
        """Continue from the checkpoint's values, where there is one."""
        self._started = time.time()
        if self._resumed is None:
            return
        best = self.state.best_global_step
        if best and (folder := self._resumed.with_name(f"{PREFIX_CHECKPOINT_DIR}-{best}")).is_dir():
            self.state.best_model_checkpoint = str(folder)  # the run may have moved
        if values := read_accumulated(self._resumed, self._made_of or {}, self.args.process_index):
            self.put_back(values)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        output = Path(self._get_output_dir(trial=trial))
        folder = output / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        if checkpoints.facts(folder):
            return
        limit, self.args.save_total_limit = self.args.save_total_limit, None  # none is removed before this is whole
        try:
            super()._save_checkpoint(model, trial)
            self.save_more(folder)
            values = json.dumps(self.accumulated(), default=float)
            (folder / f"{self.args.process_index}-{VALUES}").write_text(values, encoding="utf-8")
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                for name in ("metrics.jsonl", "watch.jsonl") if self.run_dir else ():
                    if self.run_dir and (self.run_dir.path / name).exists():
                        sync(self.run_dir.path / name)
                checkpoints.complete(folder, lines=self.run_dir.lines() if self.run_dir else 0)
        except (OSError, RuntimeError, SafetensorError) as error:
            if not disk_failed(error):
                raise
            raise RunError(self._not_saved(folder, error)) from error
        finally:
            self.args.save_total_limit = limit
        if self.args.should_save and limit:
            checkpoints.rotate(output, limit, self.state.best_model_checkpoint)
        forget()  # as a run that resumes from it

    def _not_saved(self, folder: Path, error: BaseException) -> str:
        discard(folder)
        last = checkpoints.newest(folder.parent)
        size = sum(path.stat().st_size for path in last.rglob("*") if path.is_file()) if last else 0
        needed = f" (a checkpoint needs {size / 1e6:.0f} MB)" if size else ""
        free = shutil.disk_usage(folder.parent).free
        return (
            f"{folder} could not be saved: {first_line(error)}; {free / 1e6:.0f} MB are free on its disk{needed}: "
            "free some there and give the same command again, which resumes from "
            f"{last.name if last else 'the start'}"
        )

    # -- resuming --------------------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: Any = None, **kwargs: Any) -> Any:
        """Train; from a checkpoint, exactly as if there had been no interruption."""
        self._resumed = Path(resume_from_checkpoint) if resume_from_checkpoint else None
        self._made_of = self.made_of()
        self._stopped = self._resumed is not None and training_is_over(self._resumed, self.args.max_steps)
        if self._resumed is not None:
            self.args.eval_on_start = False  # it is in the metrics already
        self.add_callback(Resumption(self))
        forget()  # what was remembered while a mapper was fitted, say: a run that resumes finds it fitted
        with self._noting_sigterm():
            return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        if self._stopped:  # killed after its last step: nothing is left but the end
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    def _finalize_training(self, trial: Any, num_train_samples: int, start_time: float) -> Any:
        return super()._finalize_training(trial, num_train_samples, self._started)

    # -- SIGTERM ---------------------------------------------------------------------------------------------------

    _terminated = False

    @property
    def terminated(self) -> bool:
        """Whether any process of this training received SIGTERM."""
        if self.accelerator.num_processes == 1:
            return self._terminated
        flag = torch.tensor(float(self._terminated), device=self.accelerator.device)
        return bool(cast(torch.Tensor, self.accelerator.reduce(flag)).item())

    @contextmanager
    def _noting_sigterm(self) -> Iterator[None]:
        """Inside, SIGTERM is noted, and acted on at the end of the step."""

        def note(*_: Any) -> None:
            self._terminated = True

        with on_sigterm(note):
            yield


VALUES = "accumulated.json"
IMAGES, WEIGHTS, REWARDS = "images, references or columns", "weights of the base", "rewards"  # of `made_of`


def read_accumulated(checkpoint: Path, made_of: Mapping[str, Any], rank: int = 0) -> dict[str, Any]:
    """Return what a process had `accumulated` at a checkpoint of the same run; nothing of an early version's.

    Args:
        checkpoint: a complete one.
        made_of: what the trainer's `made_of` says now, or a part of it.
        rank: of the process.

    Raises:
        RunError: the run was made of something else.
    """
    file = checkpoint / f"{rank}-{VALUES}"
    values: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    then = values.get("made_of") or {}
    for what, now in made_of.items():
        if None not in (now, then.get(what)) and now != then[what]:
            shown = f" ({then[what]} then, {now} now)" if isinstance(now, list) else ""
            raise RunError(
                f"{checkpoint} was trained with other {what} than the same settings name now{shown}: put these back, "
                "pass --overwrite, or name another --output"
            )
    return values


def training_is_over(checkpoint: Path, max_steps: int) -> bool:
    """Whether the checkpoint is that of the last step, by number or because the run was stopped early there."""
    state = checkpoints.trainer_state(checkpoint)
    last = max_steps if max_steps > 0 else state["max_steps"]
    control = state.get("stateful_callbacks", {}).get("TrainerControl", {}).get("args", {})
    early = bool(control.get("should_training_stop")) and state["max_steps"] == last
    return state["global_step"] >= last or early
