"""Trains one row of the study with the library's own parts, as `captune sft` and `captune grpo` do."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from captune.corpus import Corpus as Index
from captune.models.loading import load_adapter
from captune.scorers import load_scorer
from captune.scorers.image.retrieval import GRC, QIR
from captune.training.config import TrainingConfig
from captune.training.grpo.train import train_with_reward
from captune.training.lifecycle import load_training_images, start_run
from captune.training.sft.train import SFTConfig
from studies._lib import train
from studies._lib.train import UNSAVED, Reward, clean, cycle, key_of, on_wrong_image, once, supervise

from .experiments import LABELLED, REWARDS, Corpus, Spec, Training
from .galleries import gallery

QUICK = {"max_steps": 2, "limit": 24, "batch_size": 4}


class Workshop(train.Bench):
    """The base captioner, the galleries, and everything trained from them."""

    def __init__(self, base: str, work: Path, *, quick: bool = False) -> None:
        super().__init__(base, work, quick=quick)
        self._open: tuple[Corpus, Index] | None = None

    def key(self, spec: Spec) -> str:
        """What the row's result depends on, but for the images of the evaluation."""
        return key_of([self.digest, spec.kind, spec.depends(), spec.seed, self.quick])

    def gallery(self, corpus: Corpus, *, judged: Sequence[Any] = ()) -> Index:
        """The newest is kept open: GRC and QIR, and row after row, share its encoders and what was searched."""
        if self.quick:
            corpus = Corpus(40, corpus.text, corpus.image)
        if self._open is None or self._open[0] != corpus or judged:
            self._open = (corpus, gallery(corpus, self.work, base=self.base, judged=judged))
        return self._open[1]

    def adapter(self, spec: Spec) -> tuple[Path, float]:
        """The adapter of a trained row, and the seconds that its training took, now or when it was done."""
        output = self.work / "runs" / self.key(spec)

        def run() -> float:
            started = time.perf_counter()
            (self.supervise if spec.kind == "sft" else self.reinforce)(spec, output)
            clean(output)
            return time.perf_counter() - started

        return output / "adapter", once(output / "seconds.json", run)

    def config(self, kind: type, spec: Spec, output: Path, **settings: Any) -> Any:
        common = {"model": self.base, "output": output, "seed": spec.seed, **UNSAVED}
        return kind(**{**common, **settings, **(QUICK if self.quick else {})})

    def supervise(self, spec: Spec, output: Path) -> None:
        """`captune sft` with its defaults."""
        config = self.config(SFTConfig, spec, output, images=LABELLED)
        run_dir, captioner = start_run(config, "sft")
        images = load_training_images(config, references=True)
        captioner.add_lora(config.lora_r, config.lora_alpha, config.lora_dropout)
        supervise(captioner, images, config, run_dir)
        captioner.save_adapter(run_dir.adapter)

    def reinforce(self, spec: Spec, output: Path) -> None:
        """GRPO on a row's reward."""
        training = spec.training
        supervised = Spec(name="", kind="sft", seed=spec.seed)
        adapter = self.adapter(supervised)[0] if training.start == "sft" else None
        settings = training.config()
        sampling = {name: settings.pop(name) for name in ("beta", "num_generations", "temperature", "max_new_tokens")}
        del settings["reward"]
        config = self.config(TrainingConfig, spec, output, **settings)
        run_dir, captioner = start_run(config, "grpo")
        images = load_training_images(config)
        if adapter is None:
            captioner.add_lora(config.lora_r, config.lora_alpha, config.lora_dropout)
        else:
            captioner.model = load_adapter(captioner.core, adapter, trainable=True)
        train_with_reward(captioner, images, self.rewards(training, images), config, run_dir, **sampling)
        captioner.save_adapter(run_dir.adapter)

    def rewards(self, training: Training, images: Any) -> list[tuple[Reward, float]]:
        """Equation (3) with beta = 1, its parts apart."""
        if training.reward == "length":
            return [(load_scorer("length"), 1.0)]
        parts = self.measures(training.corpus, training.argument)
        chosen = [parts[name] for name in REWARDS[training.reward]]
        if training.wrong_image:
            other = cycle(len(images))
            return [(on_wrong_image(part, images, other), 1.0) for part in chosen]
        return [(part, 1.0) for part in chosen]

    def measures(self, corpus: Corpus, argument: str | None = None) -> dict[str, Any]:
        """The scorers of a gallery, with the paper's K = 5."""
        index = self.gallery(corpus)
        return {"grc": GRC(argument, corpus=index), "qir": QIR(argument, corpus=index)}
