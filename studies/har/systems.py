"""What is compared: each line of the study's tables is a `Row`. Nothing is run here.

All trainings have the defaults of the command that is named, `captune sft`, `captune scst` or `captune har`, but for
what a row says; other settings than the defaults were chosen on val with another base (`choices`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

TRAIN = "storybook:train"
BASE, SFT, SCST, ZEROCAP, HAR = "base", "SFT", "SFT + SCST", "ZeroCap", "HAR: MLE + SCST"
CEILING = "consensus of true captions"
MIXED, LONG, LONGER = f"{SCST}, mixed reward", f"{SCST}, mean baseline, 240 steps", "SFT, same total time"
EARLY = "early SFT"
DROPPED = "SFT with image dropout"
REFINED, SILENT, EARLY_LONGER = f"{EARLY} + SCST", f"{EARLY} + SCST, end not counted", f"{EARLY}, same total time"
SOME_SEEDS = (7, 8, 9)  # of HAR's own captioner, which takes longer than all others


@dataclass(frozen=True)
class Stage:
    """One training: a command's name, and its settings where they are not its defaults."""

    method: Literal["sft", "scst", "har"]
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """One row of the study.

    Args:
        training: what is trained, one after the other; nothing: the base as it is.
        decoder: how captions are made, a spec of `captune.decoding`; nothing: greedily.
        captions: of whom: the captioner, the two frozen models that ZeroCap needs, HAR's captioner before its second
            stage, the people (here: the grammar) who wrote the references, or nobody: the best that can be said by
            one who sees everything (`measures.consensus`).
    """

    name: str
    training: tuple[Stage, ...] = ()
    decoder: str = ""
    captions: Literal["captioner", "frozen pair", "first stage", "references", "consensus"] = "captioner"

    def depends(self) -> dict[str, Any]:
        """What a result depends on: all but how the row is called."""
        return {key: value for key, value in asdict(self).items() if key != "name"}


def rows(seed: int) -> Iterator[Row]:
    """In the order in which they are run."""
    sft, early, dropped = Stage("sft"), Stage("sft", {"max_steps": 20}), Stage("sft", {"image_dropout": 0.1})
    refine = {"baseline": "mean", "learning_rate": 2e-3}
    yield Row("references", captions="references")
    yield Row(CEILING, captions="consensus")
    yield Row(BASE)
    yield Row(f"{BASE}, cfg:2", decoder="cfg:2")
    yield Row(f"{BASE}, best-of:8:clip", decoder="best-of:8:clip")
    yield Row(ZEROCAP, decoder="zerocap", captions="frozen pair")
    yield Row(SFT, (sft,))
    yield Row(f"{SFT}, cfg:2", (sft,), "cfg:2")
    yield Row(f"{SFT}, cfg:1.5", (sft,), "cfg:1.5")
    yield Row(DROPPED, (dropped,))
    yield Row(f"{DROPPED}, cfg:1.5", (dropped,), "cfg:1.5")
    yield Row(f"{DROPPED}, cfg:2", (dropped,), "cfg:2")
    yield Row(f"{SFT}, best-of:8:clip", (sft,), "best-of:8:clip")
    yield Row(SCST, (sft, Stage("scst")))
    # among an image's samples CLIPScore deviates a fourteenth as much as CIDEr-D (README): it weighs half as much
    yield Row(MIXED, (sft, Stage("scst", {"reward": "cider + 7*clip"})))
    yield Row(LONG, (sft, Stage("scst", {"baseline": "mean", "max_steps": 240})))
    yield Row(LONGER, (Stage("sft", {"max_steps": 480}),))
    yield Row(EARLY, (early,))
    yield Row(REFINED, (early, Stage("scst", refine)))
    yield Row(SILENT, (early, Stage("scst", {**refine, "end_token": False})))
    yield Row(EARLY_LONGER, (Stage("sft", {"max_steps": 160}),))
    if seed in SOME_SEEDS:
        yield Row("HAR: MLE", (Stage("har"),), captions="first stage")
        yield Row(HAR, (Stage("har"),))


def choices(seed: int) -> Iterator[Row]:
    """What was looked at before the study, on val and on a base that the study does not use.

    For SFT at its defaults, stopped early, and with few labels: what self-critical training adds with which settings.
    The study has the best of the first and of the second kind, beside the defaults.
    """
    yield Row(CEILING, captions="consensus")
    mean, fast = {"baseline": "mean"}, {"baseline": "mean", "learning_rate": 2e-3}
    few = {"images": f"{TRAIN}?n=100"}
    tried: list[tuple[str, dict[str, Any], list[dict[str, Any]]]] = [
        (SFT, {}, [{}, mean, fast, {**mean, "max_steps": 240}, {**mean, "num_generations": 10, "batch_size": 32}]),
        ("SFT, 40 steps", {"max_steps": 40}, [{}, fast]),
        ("SFT, 20 steps", {"max_steps": 20}, [{}, fast]),
        ("SFT, 100 images, 100 steps", {**few, "max_steps": 100}, [{**fast, **few}]),
    ]
    for name, settings, refinements in tried:
        first = Stage("sft", settings)
        yield Row(name, (first,))
        for own in refinements:
            told = ", ".join(f"{key} {value}" for key, value in own.items() if key != "images")
            yield Row(f"{name} + SCST{f', {told}' if told else ''}", (first, Stage("scst", own)))
