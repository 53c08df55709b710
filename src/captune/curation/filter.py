"""`filter`: captions that a scorer judges to be good enough.

A caption has to pass every rule that is given, and each rule looks at the set as the step finds it. Ties are resolved
by the order of the set. Rules about texts are scorers, too: ``by: length, min: 3, max: 20`` keeps 3 to 20 words, and
``by: -empty, min: 0`` drops captions without words (see `captune scorers`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from captune.curation.base import Captions, Verdicts, Work, setting
from captune.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Filter:
    """Keep the captions that a scorer, or a sum of scorers, judges to be good enough."""

    example = "captune curate filter storybook:train?caption=alt_text --by clip --keep 0.3 --output runs/filtered"

    by: str = setting(
        "a scorer, a weighted sum such as 'clip - 0.01*length', or column:NAME of the set; --by=-length for less"
    )
    min: float | None = setting("the least score", None)
    max: float | None = setting("the highest score", None)
    keep: Annotated[float, Field(gt=0, le=1)] | None = setting("the share with the highest scores", None)
    best: Annotated[int, Field(ge=1)] | None = setting("so many of each image's captions, the highest scores", None)
    zscore: float | None = setting("the least score in standard deviations from the mean of the set", None)
    unscored: Literal["drop", "keep"] = setting("what becomes of captions that cannot be scored", "drop")
    column: str = setting("the column that keeps the score", "score", metavar="NAME")

    def __post_init__(self) -> None:
        from captune.curation.criteria import check_by, check_column, check_direction

        check_by(self.by)
        check_column(self.column)
        rules = [name for name in ("min", "max", "keep", "best", "zscore") if getattr(self, name) is not None]
        if not rules:
            raise UsageError("filter has no rule: give min, max, keep, best or zscore")
        for rule in ("keep", "best"):
            if rule in rules:
                check_direction(self.by, rule)
        if self.min is not None and self.max is not None and self.min > self.max:
            raise UsageError(f"min {self.min:g} is above max {self.max:g}, which leaves nothing")

    def decide(self, captions: Captions, work: Work) -> Verdicts:
        """Return the verdicts."""
        from captune.curation.scoring import drop_unscored, scores

        found = scores(self.by, captions, work)
        values, scored = found.values, found.why == 0
        verdicts = Verdicts(len(captions))
        verdicts.score[:] = values
        verdicts.columns[self.column] = values
        verdicts.notes["scorer"] = found.signature
        drop_unscored(found, verdicts, self.by, self.unscored == "keep")
        below = np.zeros(len(values), dtype=bool)
        if self.min is not None:
            np.less(values, self.min, out=below, where=scored)
            verdicts.drop(below, f"{self.by} below {self.min:g}")
        if self.max is not None:
            above = np.zeros(len(values), dtype=bool)
            np.greater(values, self.max, out=above, where=scored)
            verdicts.drop(above, f"{self.by} above {self.max:g}")
        if self.zscore is not None:
            mean, deviation = float(values[scored].mean()), float(values[scored].std())
            least = mean + self.zscore * deviation
            verdicts.notes |= {"mean": mean, "standard deviation": deviation}
            under = scored & (values < least) & ~np.isclose(values, least, rtol=1e-9, atol=0)  # a mean of equal ones
            verdicts.drop(under, f"{self.by} below {self.zscore:g} standard deviations")
        if self.keep is not None:
            number = math.ceil(self.keep * int(scored.sum()) - 1e-9)
            order = np.flatnonzero(scored)[np.argsort(-values[scored], kind="stable")]
            verdicts.notes["least score of the share"] = float(values[order[number - 1]])
            verdicts.drop(order[number:], f"not in the highest {self.keep:g} by {self.by}")
        if self.best is not None:
            order = np.lexsort((np.where(scored, -values, np.inf), captions.rows))
            first = np.searchsorted(captions.rows, captions.rows)  # of each caption's image; rows ascend
            rank = np.empty(len(order), dtype=np.int64)
            rank[order] = np.arange(len(order))
            verdicts.drop(
                scored & (rank - first >= self.best), f"not among the best {self.best} of the image by {self.by}"
            )
        return verdicts
