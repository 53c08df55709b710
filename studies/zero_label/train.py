"""Trains one row with the library's own parts, as `captune sft`, `captune vizer` and `captune grpo` do.

Time is the processor time of this process; with one thread (the study sees to it) that is the time of one core.
"""

from __future__ import annotations

import time
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from captune.cli.config import build
from captune.corpus import Corpus
from captune.data import load_images
from captune.models.captioner import Captioner
from captune.runs.run_dir import RunDir
from captune.scorers import load_scorer
from captune.scorers.expression import parse
from captune.scorers.image.vizer_mapper import ViZerScorer
from captune.scorers.reference.cider import Cider
from captune.training.grpo.train import train_with_reward
from captune.training.lifecycle import start_run
from captune.training.sft.train import SFTConfig
from captune.training.vizer.config import PRESETS, ViZerConfig
from captune.training.vizer.objectives import ViZerTrainer
from captune.training.vizer.train import build_mapper
from studies._lib.train import UNSAVED, Reward, clean, on_wrong_image, once, picked, supervise

from .experiments import LABELLED, REPETITION, Contender

TEXTS = "storybook-clip"  # encodes the corpus' texts: as good here as a sentence encoder, and ten times as fast
OWN, SAMPLES = 2000, 4  # images of the own corpus, and samples of each, the best of which is its entry
QUICK = {"batch_size": 4}
QUICK_VIZER = {"num_generations": 2, "mapper_samples": 2, "mapper_epochs": 1, "max_new_tokens": 8, "whitened": 4}


@lru_cache(maxsize=2)
def drawn(source: str) -> Any:
    """The images of a source, drawn once for all rows."""
    return load_images(source)


class Trial:
    """A row's training on one base with one seed in `folder`; `steps` as `Contender.steps` gives them."""

    def __init__(self, row: Contender, model: str, seed: int, steps: Any, folder: Path, *, quick: bool) -> None:
        self.row, self.steps, self.quick = row, steps, quick
        self.common = {"model": model, "output": folder, "seed": seed, "images": self.source(row.images)}
        self.common |= {**UNSAVED, **(QUICK if quick else {})}

    def source(self, name: str) -> str:
        return f"{name.partition('?')[0]}?n=24" if self.quick else name

    def run(self) -> dict[str, float]:
        """Trains, saves `adapter/` and returns the seconds: preparing (captions, mapper, corpus), training."""
        settings = {
            "max_steps": self.steps[1],
            "guidance": 0.0,  # younger than this study's pace and rows
            **self.common,
            **self.row.settings,
            **(QUICK_VIZER if self.quick else {}),
        }
        config: ViZerConfig = build(ViZerConfig, settings, presets=PRESETS)
        run_dir, captioner = start_run(config, self.row.kind)
        images = drawn(config.images).select_columns(self.row.columns)
        seconds, now = {"preparing": 0.0, "training": 0.0}, time.process_time()

        def lap(what: str) -> None:
            nonlocal now
            before, now = now, time.process_time()
            seconds[what] += now - before

        if self.row.kind == "latent":
            mapper = build_mapper(captioner, config, run_dir, images)
            lap("preparing")
            torch.manual_seed(config.seed)  # as `captune vizer` does
        captioner.add_lora(config.lora_r, config.lora_alpha, config.lora_dropout)
        if self.row.kind == "latent":
            with captioner.share_vision():
                ViZerTrainer.fit(captioner, images, config, run_dir, mapper=mapper, **config.trainer_settings())
        if self.steps[0]:
            supervised: SFTConfig = build(SFTConfig, self.common | {"max_steps": self.steps[0]})
            supervise(captioner, images, replace(supervised, output=run_dir.path / "supervised"), run_dir)
        lap("training")
        if self.row.kind == "grpo":
            for number in range(self.row.rounds):
                part = replace(config, output=run_dir.path / f"round-{number + 1}", seed=config.seed + number)
                rewards = self.rewards(captioner, part, run_dir, images)
                lap("preparing")
                sampling = ("beta", "num_generations", "temperature", "max_new_tokens")
                more = {name: getattr(part, name) for name in sampling}
                first = self.steps[0] + number * part.max_steps
                train_with_reward(captioner, images, rewards, part, run_dir, first_step=first, **more)
                lap("training")
        captioner.save_adapter(run_dir.adapter)
        clean(run_dir.path, "**/corpus")
        return {what: round(value, 2) for what, value in seconds.items()}

    def rewards(self, captioner: Captioner, config: ViZerConfig, run_dir: RunDir, images: Any) -> list[Any]:
        """The parts of the row's reward with their weights; what is made of the captioner is made of it as it is."""
        corpus = self.corpus(captioner, config, images)
        found: list[tuple[Reward, float]] = []
        for name, weight in {**parse(self.row.reward), "repetition": -REPETITION}.items():
            if name == "vizer":
                scorer: Any = ViZerScorer(captioner=captioner, mapper=build_mapper(captioner, config, run_dir, images))
            else:
                scorer = load_scorer(name, corpus=corpus)
            if isinstance(scorer, Cider):
                scorer.fit(images["references"])
            if self.row.wrong_image and name == "vizer":  # the next image: scenes come in no order
                scorer = on_wrong_image(scorer, images, [*range(1, len(images)), 0])
            found.append((scorer, weight))
        return found

    def corpus(self, captioner: Captioner, config: ViZerConfig, images: Any) -> Corpus | None:
        """What grc and qir search, in `corpus/` of the round."""
        if not self.row.corpus:
            return None
        if self.row.corpus == "references":
            source = drawn(self.source(LABELLED))
        else:
            first = images.select(range(min(OWN, len(images))))
            source = first.add_column("references", [[text] for text in best_own(captioner, first, config)])
        return Corpus.build(source, Path(config.output) / "corpus", text_encoder=TEXTS, progress=False)


def best_own(captioner: Captioner, images: Any, config: ViZerConfig) -> list[str]:
    """The captioner's own caption of each image: of `SAMPLES` samples the one of the highest CLIPScore."""
    torch.manual_seed(config.seed)
    return picked(captioner, images["image"], load_scorer("clip"), SAMPLES, max_new_tokens=config.max_new_tokens)


def trained(trial: Trial, folder: Path) -> tuple[Path, dict[str, float]]:
    """The adapter of a row and the seconds that it took, now or when it was made."""
    return folder / "adapter", once(folder / "seconds.json", trial.run)


def pace_of(row: Contender, model: str, folder: Path, steps: int, *, quick: bool) -> tuple[float, float]:
    """(seconds before the first step, seconds per step) of a method, by a short training."""
    alone = replace(row, rounds=1, supervised=0.0)
    seconds = Trial(alone, model, 1, (steps, 1) if row.kind == "sft" else (0, steps), folder, quick=quick).run()
    return seconds["preparing"], round(seconds["training"] / steps, 4)
