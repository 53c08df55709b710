"""Training of a small head on vectors of frozen encoders: what encoder pairs and reward models share.

What a step draws, and dropout, depend on the seed and the number of the step alone, so that a run that resumes from its
last checkpoint gives the same bytes. The step with the best figure on held-out data is kept.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from captune.errors import RunError, TrainingError
from captune.models.heads import HeadConfig, save_head
from captune.runs import checkpoints
from captune.runs.run_dir import RunDir
from captune.training.config import HeadsConfig
from captune.utils.files import discard, naming
from captune.utils.progress import Bar

logger = logging.getLogger(__name__)
FEATURES = "features"  # where a run keeps vectors until its end


class HeadTraining:
    """A head and all that a checkpoint holds of it. Subclasses define `loss` and `measure`.

    Attributes:
        figure: what `measure` returns is called so in the log.
        step: how many are done.
        best: (figure, step) of the best look so far.
        waited: looks since.
        kept: the weights of that look.
        data: a digest of what trains.

    Args:
        heads: as they begin.
        config: the run's settings.
        undecayed: the names of parameters without weight decay.
    """

    figure = ""

    def __init__(self, heads: nn.Module, config: HeadsConfig, undecayed: Sequence[str] = ()) -> None:
        self.heads, self.config = heads, config
        named = dict(heads.named_parameters())
        weights = [p for name, p in named.items() if name not in undecayed]
        groups: list[dict[str, Any]] = [{"params": weights}]
        groups.append({"params": [named[name] for name in undecayed], "weight_decay": 0.0})
        self.optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, weight_decay=config.weight_decay)
        self.step, self.waited, self.data = 0, 0, ""
        self.best: tuple[float, int] = (-1.0, 0)
        self.kept = self._weights()

    def loss(self, *batch: Tensor) -> Tensor:
        """Return the loss of what a step draws."""
        raise NotImplementedError

    def measure(self, choice: Any) -> float:
        """Return the figure of the heads on held-out data; more is better."""
        raise NotImplementedError

    def logged(self) -> dict[str, float]:
        """Return what is logged beside the loss and the figure."""
        return {}

    @property
    def over(self) -> bool:
        """Whether there is nothing left to do."""
        return self.step >= self.config.max_steps or self.waited >= self.config.patience

    def _weights(self) -> dict[str, Tensor]:
        return {name: tensor.detach().clone() for name, tensor in self.heads.state_dict().items()}

    def advance(self, *batch: Tensor) -> float:
        """Take a step; return its loss.

        Raises:
            TrainingError: the loss is not finite.
        """
        config = self.config
        warm = min(1.0, (self.step + 1) / max(1, config.warmup_steps))
        rate = config.learning_rate * warm * (1 + math.cos(math.pi * self.step / config.max_steps)) / 2
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        torch.manual_seed(int(np.random.default_rng((config.seed, self.step, 1)).integers(2**31)))  # of dropout
        self.heads.train()
        loss = self.loss(*batch)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise TrainingError(
                f"training stopped at step {self.step + 1}: the loss is {value}; a lower --learning-rate may help"
            )
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.step += 1
        return value

    def look(self, choice: Any) -> float:
        """Measure what chooses the step; keep the heads if they are the best so far. Returns the figure."""
        found = self.measure(choice)
        if found > self.best[0]:
            self.best, self.waited, self.kept = (found, self.step), 0, self._weights()
        else:
            self.waited += 1
        return found

    def save(self, run_dir: RunDir) -> None:
        """Write a checkpoint, and remove the one before."""
        folder = run_dir.path / f"checkpoint-{self.step}"
        try:
            with naming(folder):
                self._write(folder, run_dir)
        except OSError as error:
            raise RunError(
                f"{folder} could not be saved: {error.strerror or error}; the same command resumes"
            ) from error
        checkpoints.rotate(run_dir.path, 1, None)

    def _write(self, folder: Path, run_dir: RunDir) -> None:
        discard(folder)
        folder.mkdir(parents=True)
        save_file(self._weights(), folder / "heads.safetensors")
        save_file(self.kept, folder / "best.safetensors")
        torch.save(self.optimizer.state_dict(), folder / "optimizer.pt")
        state = {"global_step": self.step, "best": self.best, "waited": self.waited, "data": self.data}
        (folder / checkpoints.STATE).write_text(json.dumps(state) + "\n", encoding="utf-8")
        checkpoints.complete(folder, lines=run_dir.lines())

    def restore(self, folder: Path) -> None:
        """Continue from a checkpoint.

        Raises:
            RunError: it was trained on other data.
        """
        state = checkpoints.trainer_state(folder)
        if state["data"] != self.data:
            raise RunError(
                f"{folder} was trained on other images, captions or encoders than those that the same names stand for "
                "now; pass --overwrite, or name another --output"
            )
        self.heads.load_state_dict(load_file(folder / "heads.safetensors"))
        self.kept = load_file(folder / "best.safetensors")
        self.optimizer.load_state_dict(torch.load(folder / "optimizer.pt", weights_only=True))
        self.step, self.waited = state["global_step"], state["waited"]
        self.best = (state["best"][0], state["best"][1])


def opened_run(config: HeadsConfig, method: str, parts: Sequence[str]) -> RunDir:
    """Claim the run directory, to begin or to resume; one that is finished is left as it is, and said so.

    Args:
        config: the run's settings.
        method: its name in config.yaml.
        parts: the files of a result, the one first without which it counts as missing.
    """
    run_dir = RunDir(config.output, tuple(parts))
    resume = (run_dir.path / "config.yaml").is_file() and not config.overwrite
    settings = {name: value for name, value in asdict(config).items() if name != "features"}  # which decides no figure
    run_dir.claim({"method": method, **settings}, resume=resume, overwrite=config.overwrite)
    if run_dir.done:
        logger.warning("%s is already finished: --overwrite trains it again", run_dir.path)
    elif run_dir.resumes:
        run_dir.when_begun(run_dir.recover)
    return run_dir


def fit(training: HeadTraining, draw: Callable[[int], Sequence[Tensor]], choice: Any, run_dir: RunDir) -> None:
    """Train to the end, or until the figure on what chooses has not risen for a while; resumes from a checkpoint.

    Args:
        training: at step 0, with the digest of its data.
        draw: returns the batch of a step.
        choice: what `training.measure` takes.
        run_dir: holds checkpoints and the log.
    """
    config, last = training.config, checkpoints.newest(run_dir.path)
    if last is not None:
        training.restore(last)
        logger.warning("%s is resumed after step %d", run_dir.path, training.step)
    with Bar(total=config.max_steps, initial=training.step, desc="training", unit="step") as bar:
        while not training.over:
            loss = training.advance(*draw(training.step))
            bar.update()
            if training.step % config.eval_steps == 0 or training.step == config.max_steps:
                found = training.look(choice)
                run_dir.log(step=training.step, loss=loss, **training.logged(), **{training.figure: found})
                bar.set_postfix(**{"loss": f"{loss:.3f}", training.figure: f"{found:.1%}"})
                training.save(run_dir)


def finished(run_dir: RunDir, heads: nn.Module, saved: HeadConfig, card: str) -> RunDir:
    """Save the heads, remove what only an unfinished run needs (vectors, checkpoints), and finish the run.

    Args:
        run_dir: the run.
        heads: as they are kept.
        saved: what config.json says of them.
        card: the README.
    """
    save_head(run_dir.path, heads, saved)
    discard(run_dir.path / FEATURES)
    for folder in (*run_dir.checkpoints(), *run_dir.path.glob(f"{checkpoints.ASIDE}checkpoint-*")):
        discard(folder)
    return run_dir.finish(card)
