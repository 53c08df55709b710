"""`levels`: how well a caption fits its image, in levels, as a condition for training and captioning.

NoC (Kang et al., ICCV 2023) keeps every noisy pair and tells the captioner how well it fits: the cosine s of image and
text is cut into 8 bins of equal width between its least and its highest value (scikit-learn's KBinsDiscretizer,
strategy "uniform"), z = the number of inner edges that are not above s, 0 to 7; the captioner learns
p(caption | image, z) and is asked for the highest level. With `equal: count` every level has as many captions
(quantiles). The edges are kept as numbers, and `edges` applies those of one set to another.

Left open: the bins of equal width at the ends may hold few captions (a twentieth of the web's are good), and a
captioner that sees them as seldom does not learn to write them. `balance` keeps of each level as many as the smallest
holds, evenly spaced in the order of the set.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from captune.curation.base import Captions, Verdicts, Work, setting
from captune.errors import CurationError, UsageError


@dataclass(frozen=True, kw_only=True)
class Levels:
    """Sort captions into levels of a score, a condition to train and to caption under (NoC)."""

    example = "captune curate levels storybook:train?caption=alt_text --by clip --bins 5 --output runs/levels"

    by: str = setting("a scorer, a weighted sum, or column:NAME of the set")
    bins: Annotated[int, Field(ge=2, le=100)] = setting("how many levels", 8)
    equal: Literal["width", "count"] = setting(
        "what all levels have alike: the width of the bin, or the captions", "width"
    )
    edges: tuple[float, ...] = setting("the inner edges, in place of bins and equal, such as those of another set", ())
    balance: bool = setting("keep of each level as many captions as the smallest holds; the others are dropped", False)
    column: str = setting("the column that keeps the level", "level", metavar="NAME")

    def __post_init__(self) -> None:
        from captune.curation.criteria import check_by, check_column

        check_by(self.by)
        check_column(self.column)
        if self.column == "score":
            raise UsageError("column cannot be called 'score': a step's record has the scores there, not the levels")
        if any(a >= b for a, b in zip(self.edges, self.edges[1:], strict=False)):
            raise UsageError("edges must ascend")

    def decide(self, captions: Captions, work: Work) -> Verdicts:
        """Return the verdicts: captions with a score get a level, and are kept unless their level holds too many."""
        from captune.curation.scoring import drop_unscored, scores

        found = scores(self.by, captions, work)
        scored = found.why == 0
        edges = np.array(self.edges) if self.edges else inner_edges(found.values[scored], self.bins, self.equal)
        level = np.where(scored, np.searchsorted(edges, found.values, side="right"), np.nan)
        verdicts = Verdicts(len(captions))
        verdicts.score[:] = found.values
        verdicts.columns[self.column] = level
        drop_unscored(found, verdicts, self.by, keep=False)
        counts = np.bincount(level[scored].astype(np.int64), minlength=len(edges) + 1).tolist()
        if self.balance:
            least = min(count for count in counts if count)
            for number, count in enumerate(counts):
                if count <= least:
                    continue
                own = np.flatnonzero(level == number)
                verdicts.drop(
                    np.delete(own, np.arange(least) * count // least), f"more of level {number} than of another"
                )
        verdicts.notes |= {"scorer": found.signature, "inner edges": edges.tolist(), "captions per level": counts}
        return verdicts


def inner_edges(values: np.ndarray, bins: int, equal: str) -> np.ndarray:
    """Return (bins - 1,) ascending edges between levels.

    Args:
        values: (N,) scores.
        bins: how many levels.
        equal: "width" or "count".

    Raises:
        CurationError: the scores do not differ enough for so many levels.
    """
    if values.min() == values.max():
        raise CurationError(f"all scores are {values.min():g}: there is nothing to sort into levels")
    if equal == "width":
        edges = np.linspace(values.min(), values.max(), bins + 1)[1:-1]
    else:
        edges = np.quantile(values, np.linspace(0, 1, bins + 1))[1:-1]
    held = np.bincount(np.searchsorted(edges, values, side="right"), minlength=bins)
    if len(np.unique(edges)) < len(edges) or (equal == "count" and not held.all()):
        raise CurationError(
            f"too many scores are equal for {bins} levels of equal {equal} ({len(np.unique(values))} differ): take "
            f"fewer bins, or equal {'count' if equal == 'width' else 'width'}"
        )
    return edges
