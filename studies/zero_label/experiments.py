"""Who competes: the rows of `experiments.yaml`, on one base, seed by seed. Nothing is run here.

All trainings see the same number of images, 4,000, and have the same processor time, `BUDGET` seconds of one core, in
which everything is counted that the method needs: captions, mapper and corpus made, rewards computed. How many steps
that allows is worked out from `pace.json`, what a step of each method took on a base that the study does not use; so
the number of steps, not a clock, decides a result, and a row can be made again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from captune.scorers.expression import parse
from studies._lib.rows import COMMON, Row, read

BUDGET = 180.0  # seconds of one core
LABELLED, UNLABELLED = "storybook:train?n=4000", "storybook:unlabelled?n=4000"
BASE, SUPERVISED = "base", "supervised"
OPENINGS = ("a", "there is a", "a big", "a small", "in the", "a photo of a", "this picture shows a")
SCALES = (1.5, 2.0, 3.0, 5.0)  # of classifier-free guidance
REPETITION = 0.5  # what the share of repeated 3-grams costs in every reward

SHOWN = {"test": 8, "ood": 4}  # images of the examples page: the first ones of the first seed

PACE = Path(__file__).parent / "pace.json"
Pace = Mapping[str, tuple[float, float]]  # method -> seconds before the first step, seconds per step


@dataclass(frozen=True, kw_only=True)
class Contender(Row):
    """One row of the study.

    Args:
        kind: greedy (no training), references, opening, best_of, guidance; or what trains: sft, latent (ViZer), grpo.
        role: base, supervised, zero (no label at any time), outside (no label of the images, but what judges has
            learned from captioned images of this world), labels, oracle, control or other.
        reward: an expression of scorers; `vizer` is the mapper fitted at the beginning of the round.
        corpus: what grc and qir search: "own", the captioner's captions of 2,000 of the images, the best of 4
            samples of each by CLIPScore, made again in each round; or "references", 4,000 captioned images.
        rounds: times that mapper and own corpus are made again; the budget is divided among them.
        budget: in multiples of `BUDGET`.
        supervised: the share of the time that goes into fine-tuning on references before the reward begins.
        settings: of the method's config, where other than its defaults.
    """

    kind: Literal["greedy", "references", "opening", "best_of", "guidance", "sft", "latent", "grpo"]
    role: Literal["base", "supervised", "zero", "outside", "labels", "oracle", "control", "other"]
    reward: str = ""
    corpus: Literal["", "own", "references"] = ""
    rounds: int = 1
    budget: int = 1
    supervised: float = 0.0
    wrong_image: bool = False
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def trains(self) -> bool:
        return self.kind in ("sft", "latent", "grpo")

    @property
    def columns(self) -> list[str]:
        """What training is allowed to see of the images: rows without labels are given none."""
        if self.kind == "sft" or self.supervised or "cider" in self.reward:
            return ["image", "image_id", "references"]
        return ["image", "image_id", "scene"] if self.role == "oracle" else ["image", "image_id"]

    @property
    def images(self) -> str:
        return LABELLED if "references" in self.columns else UNLABELLED

    @property
    def method(self) -> str:
        """What a step's cost depends on: a key of `pace.json`."""
        objective = self.settings.get("preset") or self.settings.get("objective") or ""
        reward = " + ".join(parse(self.reward)) if self.reward else objective
        return " ".join(filter(None, (self.kind, reward, self.corpus and f"({self.corpus})")))

    def steps(self, pace: Pace) -> tuple[int, int]:
        """(optimiser steps on references, steps of each round by the method itself) that fit the budget.

        Raises:
            ValueError: where the pace is not known, or leaves no time for a step.
        """
        total = self.budget * BUDGET
        if self.kind == "sft":
            return _fit(total, self.method, pace), 1
        first = _fit(total * self.supervised, "sft", pace) if self.supervised else 0
        return first, _fit(total * (1 - self.supervised) / self.rounds, self.method, pace)

    def depends(self) -> dict[str, Any]:
        """What a result depends on: all but how the row is called and how its number of steps was found."""
        return {key: value for key, value in asdict(self).items() if key not in (*COMMON, "role", "budget")}

    def runs(self) -> dict[str, dict[str, Any]]:
        if self.kind not in ("sft", "latent"):
            return {}
        steps = self.steps(read_pace())
        settings = {"images": self.images, "max_steps": max(steps), **self.settings}
        return {"sft": settings} if self.kind == "sft" else {"vizer": {"guidance": 0.0, **settings}}


def _fit(seconds: float, method: str, pace: Pace) -> int:
    if method not in pace:
        raise ValueError(
            f"how long a step of {method!r} takes is not known; measure it: python -m studies zero_label --pace"
        )
    first, each = pace[method]
    if seconds < first + each:
        raise ValueError(f"{seconds:.0f} s leave no time for a step of {method!r}: {first:.0f} s go before the first")
    return int((seconds - first) / each)


def read_pace(file: Path = PACE) -> Pace:
    return {method: tuple(seconds) for method, seconds in json.loads(file.read_text())["seconds"].items()}


ROWS = read(Path(__file__).with_suffix(".yaml"), Contender)
