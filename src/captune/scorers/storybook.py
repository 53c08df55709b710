"""The exact facts of a storybook caption: what it states that is true, what it states that is false, what it leaves out.

For each type of fact (object, attribute, size, subkind, relation, background), and over all of them (`fact_*`),

    precision = true facts stated / facts stated
    recall    = true facts stated / facts there are to state
    f1        = 2 precision recall / (precision + recall)

counted over the whole corpus (micro). `hallucinated_per_caption` is the number of false facts per caption,
`hallucinated_per_fact` = 1 - precision. `full` is the share of captions that name every thing with its right colour and
state nothing false. The facts come from `captune.storybook.parser`; a scene of n things has n - 1 relations to state.

Needs: `scene`, the scene's JSON. As a reward: the F1 of the caption alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from captune.scorers import Scorer
from captune.storybook.parser import TYPES, count
from captune.storybook.world import Scene


def ratio(part: float, whole: float) -> float:
    """part / whole, and 0 where there is nothing to divide by."""
    return float(part) / float(whole) if whole else 0.0


def f1(precision: float, recall: float) -> float:
    return ratio(2 * precision * recall, precision + recall)


class StorybookScorer(Scorer):
    """See the module. `rows`: (N, 25): per type (true, stated, recalled, to state), then whether the caption is full."""

    name = "storybook"
    needs = ("scene",)

    def __init__(self, argument: str | None = None) -> None:
        if argument:
            raise ValueError(f"the scorer 'storybook' takes no argument, it was given {argument!r}")

    def rows(self, captions: Sequence[str], *, scene: Sequence[str], **columns: Any) -> np.ndarray:
        return np.array(
            [self.row(caption, Scene.from_json(text)) for caption, text in zip(captions, scene, strict=True)],
            dtype=np.float64,
        ).reshape(len(captions), 4 * len(TYPES) + 1)

    @staticmethod
    def row(caption: str, scene: Scene) -> list[float]:
        counts = count(caption, scene)
        true, stated = (sum(c[i] for c in counts.values()) for i in (0, 1))
        named = counts["object"][0] == counts["attribute"][0] == len(scene.things)
        return [*(n for fact_type in TYPES for n in counts[fact_type]), float(named and true == stated)]

    def corpus(self, rows: np.ndarray) -> dict[str, float]:
        counts = rows[:, :-1].sum(axis=0).reshape(len(TYPES), 4)
        values = {}
        for name, (true, stated, recalled, there) in [("fact", counts.sum(axis=0)), *zip(TYPES, counts, strict=True)]:
            precision, recall = ratio(true, stated), ratio(recalled, there)
            values |= {
                f"{name}_f1": f1(precision, recall),
                f"{name}_precision": precision,
                f"{name}_recall": recall,
            }
        true, stated = counts.sum(axis=0)[:2]
        values["hallucinated_per_caption"] = ratio(stated - true, len(rows))
        values["hallucinated_per_fact"] = ratio(stated - true, stated)
        values["full"] = ratio(rows[:, -1].sum(), len(rows))
        return values

    def per_caption(self, rows: np.ndarray) -> np.ndarray:
        true, stated, recalled, there = rows[:, :-1].reshape(len(rows), len(TYPES), 4).sum(axis=1).T
        precision, recall = (
            np.divide(a, b, out=np.zeros_like(a), where=b > 0) for a, b in ((true, stated), (recalled, there))
        )
        total = precision + recall
        return np.divide(2 * precision * recall, total, out=np.zeros_like(total), where=total > 0)

    @property
    def signature(self) -> str:
        return "storybook|facts:exact|average:micro"
