"""The exact facts of a storybook caption: what it states that is true, what is false, what it leaves out.

For each type of fact (object, attribute, size, subkind, relation, background), and over all of them (`fact_*`),

    precision = true facts stated / facts stated
    recall    = true facts stated / facts there are to state
    f1        = 2 precision recall / (precision + recall)

counted over the whole corpus (micro). `hallucinated_per_caption` is the number of false facts per caption,
`hallucinated_per_fact` = 1 - precision. `full` is the share of captions that name every thing with its right colour and
state nothing false. The facts come from `captune.storybook.parser`; a scene has as many relations
to state as the grammar states (one, two, two for two, three, four things).

Needs: `scene`, the scene's JSON. As a reward: the F1 of the caption alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from captune.errors import SpecError
from captune.scorers import Scorer, safe_ratio
from captune.storybook.parser import TYPES, count
from captune.storybook.world import Scene


class StorybookScorer(Scorer):
    """Exact facts stated about a storybook scene: their F1, precision and recall, and what is hallucinated.

    `rows`: (N, 25): per type (true, stated, recalled, to state), then whether the caption is full.
    """

    name = "storybook"
    primary = "fact_f1"
    higher_is_better: ClassVar = {
        "*_f1": True,
        "*_precision": True,
        "*_recall": True,
        "hallucinated_per_caption": False,
        "hallucinated_per_fact": False,
        "full": True,
    }
    labels: ClassVar = {
        "fact_f1": "fact F1",
        "hallucinated_per_fact": "hallucination rate",
        "hallucinated_per_caption": "false facts per caption",
        "full": "complete captions",
    }
    source = "captune"
    cost = "0.1 ms"
    required_columns = ("scene",)

    def __init__(self, argument: str | None = None) -> None:
        if argument:
            raise SpecError(f"scorer 'storybook' takes no argument, but was given {argument!r}")

    def rows(self, captions: Sequence[str], *, scene: Sequence[str], **columns: Any) -> np.ndarray:
        """Return (N, 25) counts; see the class."""
        return np.array(
            [self.row(caption, Scene.from_json(text)) for caption, text in zip(captions, scene, strict=True)],
            dtype=np.float64,
        ).reshape(len(captions), 4 * len(TYPES) + 1)

    @staticmethod
    def row(caption: str, scene: Scene) -> list[float]:
        """Return the counts of one caption, 25 numbers."""
        counts = count(caption, scene)
        true, stated = (sum(c[i] for c in counts.values()) for i in (0, 1))
        named = counts["object"][0] == counts["attribute"][0] == len(scene.things)
        return [*(n for fact_type in TYPES for n in counts[fact_type]), float(named and true == stated)]

    def from_totals(self, totals: np.ndarray, n: int) -> dict[str, np.ndarray]:
        """Return every figure from summed counts (..., 25) of `n` captions."""
        counts = totals[..., :-1].reshape(*totals.shape[:-1], len(TYPES), 4)
        groups = {"fact": counts.sum(axis=-2)} | {name: counts[..., i, :] for i, name in enumerate(TYPES)}
        values: dict[str, np.ndarray] = {}
        for name, group in groups.items():
            precision, recall = safe_ratio(group[..., 0], group[..., 1]), safe_ratio(group[..., 2], group[..., 3])
            f1 = safe_ratio(2 * precision * recall, precision + recall)
            values |= {f"{name}_f1": f1, f"{name}_precision": precision, f"{name}_recall": recall}
        true, stated = groups["fact"][..., 0], groups["fact"][..., 1]
        values["hallucinated_per_caption"] = (stated - true) / n
        values["hallucinated_per_fact"] = safe_ratio(stated - true, stated)
        values["full"] = totals[..., -1] / n
        return values

    def per_caption(self, rows: np.ndarray) -> np.ndarray:
        """Return the F1 of each caption over all its facts, (N,)."""
        true, stated, recalled, there = rows[:, :-1].reshape(len(rows), len(TYPES), 4).sum(axis=1).T
        precision, recall = safe_ratio(true, stated), safe_ratio(recalled, there)
        return safe_ratio(2 * precision * recall, precision + recall)

    @property
    def signature(self) -> str:
        """What the figures depend on."""
        return "storybook|facts:exact|average:micro"
