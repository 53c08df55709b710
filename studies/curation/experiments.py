"""What is trained on: the rows of `experiments.yaml`. Nothing is run here."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from studies._lib.rows import COMMON, Row, read

IMAGES = 1500
STEPS = 100  # of `captune sft`, for every row: fewer captions are seen more often
BASE, RAW, REFERENCES, RANDOM, ORACLE = "base", "raw", "references", "random", "oracle"


@dataclass(frozen=True, kw_only=True)
class Set(Row):
    """A row: a set of captions.

    Args:
        kind: base (nothing is trained), references, or alt_text.
        times: as many images as other rows have.
        share: of the images, drawn without looking; scenes come in no order, so that they are the first ones.
        steps: of curation.
    """

    kind: Literal["base", "references", "alt_text"]
    times: int = 1
    share: float = 1.0
    steps: list[dict[str, Any]] = field(default_factory=list)

    @property
    def levels(self) -> int:
        """How many levels there are to ask for; 0 where captions have none."""
        return sum(own["levels"]["bins"] for own in self.steps if "levels" in own)

    def source(self, images: int) -> str:
        """Other images for each seed, so that a spread over seeds is one over sets too."""
        column = "&caption=alt_text" if self.kind == "alt_text" else ""
        return f"storybook:train?n={math.ceil(self.times * self.share * images - 1e-9)}&seed={300 + self.seed}{column}"

    def depends(self) -> dict[str, Any]:
        """What a result depends on beside the source."""
        return {key: value for key, value in asdict(self).items() if key not in (*COMMON, "times")}


ROWS = read(Path(__file__).with_suffix(".yaml"), Set)
