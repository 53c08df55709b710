"""What is compared: the rows of `experiments.yaml`, a line each of the study's tables. Nothing is run here.

All trainings have the defaults of the command that is named, `captune sft`, `captune scst` or `captune har`, but for
what a row says; other settings than the defaults were chosen on val with another base (section `choices`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from studies._lib.rows import Row, read

TRAIN = "storybook:train"
PARTS = {"language_model": "storybook-lm", "image_encoder": "storybook-clip"}
BASE, SFT, SCST, ZEROCAP, HAR = "base", "SFT", "SFT + SCST", "ZeroCap", "HAR: MLE + SCST"
CEILING = "consensus of true captions"
MIXED, LONG, LONGER = f"{SCST}, mixed reward", f"{SCST}, mean baseline, 240 steps", "SFT, same total time"
EARLY = "early SFT"
DROPPED = "SFT with image dropout"
REFINED, SILENT, EARLY_LONGER = f"{EARLY} + SCST", f"{EARLY} + SCST, end not counted", f"{EARLY}, same total time"

# Which rows are compared, the second taken from the first (or the first divided by the second).
PAIRS = [
    (SCST, SFT), (LONG, SFT), (MIXED, SFT), (SCST, LONGER), (LONG, LONGER), (MIXED, SCST), (REFINED, EARLY),
    (REFINED, EARLY_LONGER), (SILENT, REFINED), (HAR, "HAR: MLE"), (SCST, ZEROCAP), (HAR, ZEROCAP),
]  # fmt: skip
GUIDED = [(DROPPED, SFT), *((f"{DROPPED}, {cfg}", f"{SFT}, {cfg}") for cfg in ("cfg:1.5", "cfg:2"))]
GUIDED.append((f"{DROPPED}, cfg:1.5", DROPPED))
CEILINGS = [(CEILING, SFT), (CEILING, EARLY)]


@dataclass(frozen=True, kw_only=True)
class System(Row):
    """One row of the study.

    Args:
        training: [{method: settings}], what is trained, one after the other; nothing: the base as it is.
        decoder: a spec of `captune.decoding`; nothing: greedily.
        captions: of the captioner, ZeroCap's two frozen models, HAR's captioner before its second stage, the writers
            of the references, or of one who sees everything (`evaluate.consensus`).
    """

    training: list[dict[str, dict[str, Any]]] = field(default_factory=list)
    decoder: str = ""
    captions: Literal["captioner", "frozen pair", "first stage", "references", "consensus"] = "captioner"

    @property
    def stages(self) -> list[tuple[str, dict[str, Any]]]:
        """(method, settings) of each training."""
        return [stage for own in self.training for stage in own.items()]

    def depends(self) -> dict[str, Any]:
        """What a result depends on: all but how the row is called."""
        training = [{"method": method, "settings": settings} for method, settings in self.stages]
        return {"training": training, "decoder": self.decoder, "captions": self.captions}

    def runs(self) -> dict[str, dict[str, Any]]:
        """The last stage is what tells a row from others."""
        parts = {"har": PARTS}
        return {method: {"images": TRAIN, **parts.get(method, {}), **own} for method, own in self.stages[-1:]}


ROWS = read(Path(__file__).with_suffix(".yaml"), System)
