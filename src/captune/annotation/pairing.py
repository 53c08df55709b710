"""Which battle a rater is shown next.

The two systems are those whose battle is expected to tell most about the strengths. The information about the strengths
is a matrix F; a battle of i and j adds I(d) a a', where a has 1 at i and -1 at j, and I(d) is the information of one
battle at the present estimate (`Fit.information`). By the matrix determinant lemma

    log det (F + I a a') - log det F  =  log (1 + I(d) v),      v = a' F^-1 a = Var(theta_i - theta_j)

is gained, and the pair with the largest gain is chosen: D-optimal design, one step ahead. Battles that are open count
as fought. Until each pair has had `START` battles, the one with the fewest is chosen; equal ones at random.

The image is one that the rater has not seen, of those the one with the fewest battles of this pair; equal ones at
random. A share of a rater's battles, `overlap`, is taken from those that others were shown, without which raters could
not be compared.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import NamedTuple, TypeVar

import numpy as np

from captune.evaluation.bradley_terry import Fit

START = 4
"""Battles of each pair of systems before the estimate decides."""

T = TypeVar("T")
Shown = tuple[str, str, str, str]  # rater, image_id, system a, system b


class Choice(NamedTuple):
    """What is shown next; the sides are not decided yet."""

    image_id: str
    a: str
    b: str


class Pairing:
    """Chooses battles.

    Args:
        captions: {system: {image_id: caption}}.
        repeat: show an image to a rater again, with two captions that the rater has not compared.
        overlap: the share of a rater's battles that other raters were shown.
        seed: of what is chosen at random; None: another one each time.

    Attributes:
        systems: their names, in order.
        images: {(system a, system b): the images with a different caption of each}.
        equal: how many pairs of captions are equal; they are never shown.
    """

    def __init__(
        self,
        captions: Mapping[str, Mapping[str, str]],
        *,
        repeat: bool = False,
        overlap: float = 0.2,
        seed: int | None = None,
    ) -> None:
        self.systems = sorted(captions)
        self.repeat, self.overlap = repeat, overlap
        self.images: dict[tuple[str, str], list[str]] = {}
        self.equal = 0
        for a, b in combinations(self.systems, 2):
            both = [image_id for image_id in captions[a] if image_id in captions[b]]
            self.images[a, b] = [i for i in both if captions[a][i].strip() != captions[b][i].strip()]
            self.equal += len(both) - len(self.images[a, b])
        self._known = {pair: set(own) for pair, own in self.images.items()}
        self._random = random.Random(seed)

    @property
    def most(self) -> int:
        """How many battles one rater can be shown."""
        pairs = [(image_id, pair) for pair, own in self.images.items() for image_id in own]
        return len(pairs) if self.repeat else len({image_id for image_id, _ in pairs})

    def has(self, image_id: str, a: str, b: str) -> bool:
        """Return whether an image is here with different captions of two systems, a the first by name."""
        return image_id in self._known.get((a, b), ())

    def choose(
        self, rater: str, shown: Sequence[Shown], fit: Fit | None, waiting: Counter[tuple[str, str]], without: set[str]
    ) -> Choice | None:
        """Return the next battle; None where the rater has seen all.

        Args:
            rater: who is asked.
            shown: every battle so far.
            fit: of those with a vote; None: no vote yet.
            waiting: {pair: how many of its battles have no vote yet}.
            without: images that cannot be shown.
        """
        mine = [row for row in shown if row[0] == rater and self.has(*row[1:])]
        seen = {row[1:] if self.repeat else row[1] for row in mine}

        def new(image_id: str, a: str, b: str) -> bool:
            return ((image_id, a, b) if self.repeat else image_id) not in seen and image_id not in without

        due = math.floor((len(mine) + 1) * self.overlap) > math.floor(len(mine) * self.overlap)
        others = Counter(Choice(*row[1:]) for row in shown) if due else Counter()
        common = {own: count for own, count in others.items() if self.has(*own) and new(*own)}
        if common:
            return self._fewest(common)
        unseen = {(a, b): [i for i in own if new(i, a, b)] for (a, b), own in self.images.items()}
        available = [pair for pair, own in unseen.items() if own]
        if not available:
            return None
        fought = Counter((row[2], row[3]) for row in shown)
        counts = {pair: fought[pair] for pair in available}
        if fit is None or min(counts.values()) < START:
            a, b = self._fewest(counts)
        else:
            a, b = self._fewest({pair: -gain for pair, gain in self.gains(available, fit, waiting).items()})
        times = Counter(row[1] for row in shown if row[2:] == (a, b))
        return Choice(self._fewest({image_id: times[image_id] for image_id in unseen[a, b]}), a, b)

    def gains(
        self, pairs: Sequence[tuple[str, str]], fit: Fit, waiting: Counter[tuple[str, str]]
    ) -> dict[tuple[str, str], float]:
        """Return what a battle of each pair is expected to add to log det F."""
        place = {system: number for number, system in enumerate(self.systems)}
        covariance = fit.covariance
        for (a, b), count in waiting.items():
            if a in place and b in place:
                i, j = place[a], place[b]
                spread = covariance[i] - covariance[j]
                known = count * fit.information(i, j)
                covariance = covariance - np.outer(spread, spread) * known / (1 + known * (spread[i] - spread[j]))
        found = {}
        for a, b in pairs:
            i, j = place[a], place[b]
            variance = covariance[i, i] + covariance[j, j] - 2 * covariance[i, j]
            found[a, b] = math.log1p(fit.information(i, j) * max(0.0, float(variance)))
        return found

    def _fewest(self, counts: Mapping[T, float]) -> T:
        least = min(counts.values())
        return self._random.choice([own for own, count in counts.items() if count == least])
