"""What the ViZer study runs: the rows of `experiments.yaml`. Nothing is run here.

`main` and `controls` carry the claims and run on every base; `choices`, `sweep` and `learning` explain them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from studies._lib import rows

BASE, ZERO, PAPER_GT, PAPER_G, SUPERVISED = "base", "zero-label", "paper GT", "paper G", "supervised"
MAIN_ROWS = (BASE, ZERO, PAPER_GT, PAPER_G, SUPERVISED)
WIDTHS, SIZES = (128, 256, 512, 1024), (250, 1000, "all")


@dataclass(frozen=True, kw_only=True)
class Spec(rows.Spec):
    """One row of the study.

    Args:
        kind: how the captions come about: greedy (no training), vizer, sft, opening, best_of, references; or probe.
        settings: of the method's config for vizer and sft (as `captune vizer --config` takes them), else of the kind.
        reward: what GRPO rewards: "mapper", "length", or "wrong image", the right mapper on another image.
    """

    reward: str = "mapper"

    @property
    def trains(self) -> bool:
        return self.kind in ("vizer", "sft")

    def runs(self) -> dict[str, dict[str, Any]]:
        return {self.kind: self.settings} if self.trains and self.reward == "mapper" else {}


ROWS = rows.read(Path(__file__).with_suffix(".yaml"), Spec)
BY_NAME = {row.name: row for row in ROWS["main"]}
