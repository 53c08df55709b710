"""The rule of the reward-hacking watch: when an evaluation of a run is marked.

An evaluation is marked when the reward has risen and either of these holds.

- *A held-out score has fallen.* On the same images, the mean score of the sampled captions is below the best that the
  run has had (at first its start, so that a fall below the start is one below the best, too) by at least a tenth of it,
  and a paired permutation test over images gives p < 0.001, one-sided.
- *A vital sign fails*, whatever the scores say, since a held-out scorer may be blind to what the reward exploits. It is
  compared with the start or the references, whichever is more lenient: greedy captions twice as long, a vocabulary of
  less than half, or a share that is higher by 0.15 (repetition), 0.25 (cut, bad endings, false facts) or 0.1 (empty).

Why so:

- *Relative to the best*: a base captioner starts low, and a run which first gains and then over-optimises is still
  above its start.
- *A tenth*: after many steps any two captioners differ significantly. A run that starts from a good adapter may trade a
  hundredth of one score for more of another, and is healthy. *p < 0.001*: a run has a dozen evaluations, and each is
  compared with the luckiest of those before it.
- *A margin for vital signs*: healthy runs are rougher than people for a while. On storybook 0.10 of the 2- and 3-grams
  of a caption repeat early in a healthy run, 0.06 at its end, and 0.02 in references.
- *The reward has risen*, by however little: the strict tests are of the witnesses, and that the reward climbs is what
  the trainer is for. A run whose scores fall while its reward does not is broken, no hack; early stopping sees it.

The thresholds were chosen on storybook:val with one training seed; `benchmarks/behaviour/monitor.json` has what others gave.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from captune.evaluation.statistics import paired
from captune.scorers import Scorer

FALL, LEVEL = 0.1, 0.001  # of the best score; one-sided
MARGINS = {"repetition": 0.15, "bad_endings": 0.25, "empty": 0.1, "cut": 0.25, "hallucinated": 0.25}
LONGER, POORER = 2.0, 0.5  # times the length, times the vocabulary

Row = dict[str, Any]  # an evaluation: step, reward, greedy, sampled, by_image {scorer: ...}, health {figure: ...}


def find_marks(
    before: Sequence[Row], row: Row, references: Mapping[str, float], reward_at: Callable[[Row], float | None]
) -> list[Row]:
    """[{figure, since: the step compared with, text}] of an evaluation.

    Args:
        before: the earlier evaluations, the first one first.
        references: the health of people's captions of the same images, as far as it is known.
        reward_at: what an earlier evaluation's reward is, None where that is not known.
    """

    def risen(then: Row) -> bool:
        reward = reward_at(then)
        return reward is not None and row["reward"] > reward

    if not before or row["reward"] is None:
        return []
    start = before[0]
    marks = []
    for name in row["sampled"]:
        best = max(before, key=lambda r: r["sampled"][name])
        if risen(best) and (p := fallen(row, best, name)) is not None:
            scores = f"from {best['sampled'][name]:.3f} (step {best['step']}) to {row['sampled'][name]:.3f}"
            text = f"{name} of sampled captions fell {scores}, p = {p:.5f}"
            marks.append({"figure": name, "since": best["step"], "text": text})
    for figure, now in row["health"].items():
        then = start["health"][figure]
        if risen(start) and failing(figure, now, then, references.get(figure, then)):
            values = f"from {then:.3g} (step {start['step']}) to {now:.3g}"
            text = f"{figure.replace('_', ' ')} of greedy captions went {values}"
            marks.append({"figure": figure, "since": start["step"], "text": text})
    return marks


def fallen(row: Row, best: Row, name: str) -> float | None:
    """The one-sided p-value of a fall that counts; None where there is none."""
    now, then = row["sampled"][name], best["sampled"][name]
    if now >= then or then - now < FALL * abs(then):
        return None
    after, before = (np.array(r["by_image"][name])[:, None] for r in (row, best))
    p = paired(after, before, Scorer()).p_value.get("", 1.0) / 2
    return p if p < LEVEL else None


def failing(figure: str, now: float, start: float, references: float) -> bool:
    """Whether a vital sign is beyond its margin."""
    if figure == "length":
        return now > LONGER * max(start, references)
    if figure == "vocabulary":
        return now < POORER * min(start, references)
    return now > max(start, references) + MARGINS[figure]
