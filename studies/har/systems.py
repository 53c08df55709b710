"""What is compared: each line of the study's tables is a `Row`. Nothing is run here.

All trainings have the defaults of the command that is named, `captune sft`, `captune scst` or `captune har`, but for
what a row says.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

TRAIN = "storybook:train"
BASE, SFT, SCST, ZEROCAP, HAR = "base", "SFT", "SFT + SCST", "ZeroCap", "HAR: MLE + SCST"
CEILING = "consensus of true captions"
LONGER, SHORT = "SFT, same total time", "SFT, a third of the steps"
# Steps of supervision that take as long as 300 and then self-critical training (see `choices`).
SAME_TIME = 480
# Among an image's samples CLIPScore deviates a fourteenth as much as CIDEr-D (README): it weighs half as much.
MIXED = "cider + 7*clip"


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


def scst(**settings: Any) -> tuple[Stage, ...]:
    """Supervision at its defaults, then self-critical training."""
    return Stage("sft"), Stage("scst", settings)


def rows() -> Iterator[Row]:
    """In the order in which they are run, for each seed."""
    sft, short = Stage("sft"), Stage("sft", {"max_steps": 100})
    yield Row("references", captions="references")
    yield Row(CEILING, captions="consensus")
    yield Row(BASE)
    yield Row(f"{BASE}, cfg:2", decoder="cfg:2")
    yield Row(f"{BASE}, best-of:8:clip", decoder="best-of:8:clip")
    yield Row(ZEROCAP, decoder="zerocap", captions="frozen pair")
    yield Row(SFT, (sft,))
    yield Row(f"{SFT}, cfg:2", (sft,), "cfg:2")
    yield Row(f"{SFT}, best-of:8:clip", (sft,), "best-of:8:clip")
    yield Row(SCST, scst())
    yield Row(f"{SCST}, mixed reward", scst(reward=MIXED))
    yield Row(LONGER, (Stage("sft", {"max_steps": SAME_TIME}),))
    yield Row(f"{SCST}, end not counted", scst(end_token=False))
    yield Row(SHORT, (short,))
    yield Row(f"{SHORT}, + SCST", (short, Stage("scst")))
    yield Row("HAR: MLE", (Stage("har"),), captions="first stage")
    yield Row(HAR, (Stage("har"),))


def choices() -> Iterator[Row]:
    """What was looked at before the study, on val and on a base that the study does not use."""
    yield Row(CEILING, captions="consensus")
    yield Row(SFT, (Stage("sft"),))
    yield Row(SCST, scst())
    yield Row(f"{SCST}, mean baseline, learning rate 2e-3", scst(baseline="mean", learning_rate=2e-3))
    yield Row(f"{SCST}, mean baseline, 240 steps", scst(baseline="mean", max_steps=240))
