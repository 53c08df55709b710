"""The rule of the monitor: when an evaluation of a run is flagged.

An evaluation is flagged when the reward has risen since the evaluation that it is compared with, and either holds:

- *A held-out score got worse.* On the same images, the mean score of the sampled captions is worse than the run's best
  so far by at least `FALL` of it, and a paired permutation test over images gives p < `LEVEL`, one-sided.
- *A health metric failed.* It is beyond its margin (`MARGINS`, `LONGER`, `POORER`) from the start of the run or from
  the references, whichever is more lenient.

The best, and not the start, since a captioner that first gains and then over-optimises still is above its start. A
tenth, since after many steps any two captioners differ significantly. The reward must have risen: a run whose scores
and reward both fall is broken, not hacked. `docs/monitor.md` has the reasons for each threshold, which were chosen on
storybook:val with one training seed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from captune.evaluation.statistics import permutation_test

FALL, LEVEL = 0.1, 0.001  # of the best score; one-sided
MARGINS = {"repetition": 0.15, "bad_endings": 0.25, "empty": 0.1, "cut": 0.25, "hallucinated": 0.25}
LONGER, POORER = 2.0, 0.5  # times the length, times the vocabulary

Row = dict[str, Any]  # an evaluation: step, reward, greedy, sampled, by_image {scorer: ...}, health {figure: ...}


def find_alerts(
    before: Sequence[Row],
    row: Row,
    references: Mapping[str, float],
    reward_at: Callable[[Row], float | None],
    signs: Mapping[str, float] | None = None,
) -> list[Row]:
    """Return the alerts of an evaluation.

    Args:
        before: the earlier evaluations, the first one first.
        row: the evaluation.
        references: the health metrics of people's captions of the same images, as far as they are known.
        reward_at: an earlier evaluation's reward, None where that is not known.
        signs: {scorer: -1} for those where lower is better.

    Returns:
        [{figure, since: the step compared with, text}].
    """

    def risen(then: Row) -> bool:
        reward = reward_at(then)
        return reward is not None and row["reward"] > reward

    if not before or row["reward"] is None:
        return []
    start = before[0]
    alerts = []
    for name in row["sampled"]:
        sign = (signs or {}).get(name, 1.0)
        best = max(before, key=lambda r: sign * r["sampled"][name])
        if risen(best) and (p := worsened(row, best, name, sign)) is not None:
            scores = f"from {best['sampled'][name]:.3f} (step {best['step']}) to {row['sampled'][name]:.3f}"
            text = f"{name} of sampled captions {'fell' if sign > 0 else 'rose'} {scores}, p = {p:.5f}"
            alerts.append({"figure": name, "since": best["step"], "text": text})
    for figure, now in row["health"].items():
        then = start["health"][figure]
        if risen(start) and failing(figure, now, then, references.get(figure, then)):
            values = f"from {then:.3g} (step {start['step']}) to {now:.3g}"
            text = f"{figure.replace('_', ' ')} of greedy captions went {values}"
            alerts.append({"figure": figure, "since": start["step"], "text": text})
    return alerts


def worsened(row: Row, best: Row, name: str, sign: float = 1.0) -> float | None:
    """Return the one-sided p-value of a loss that counts; None for any other change."""
    now, then = sign * row["sampled"][name], sign * best["sampled"][name]
    if now >= then or then - now < FALL * abs(then):
        return None
    after, before = (np.array(r["by_image"][name], dtype=np.float64) for r in (row, best))
    p = permutation_test(after - before) / 2
    return p if p < LEVEL else None


def failing(figure: str, now: float, start: float, references: float) -> bool:
    """Return whether a health metric is beyond its margin from the start and from the references."""
    if figure == "length":
        return now > LONGER * max(start, references)
    if figure == "vocabulary":
        return now < POORER * min(start, references)
    return now > max(start, references) + MARGINS[figure]
