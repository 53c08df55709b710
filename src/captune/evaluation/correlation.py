"""How well numbers go with human judgements: rank correlations, pairwise accuracy, and their bootstrap over images.

For judgements (x_i, y_i) with scores x and ratings y, i <= n (Kendall 1945; Stuart 1953; Spearman 1904):

    S        = #{pairs in the same order} - #{pairs in opposite orders}         a tie in x or in y counts for neither
    tau-b    = S / sqrt((n0 - n1) (n0 - n2))      n0 = n (n - 1) / 2 pairs, n1 of them tied in x, n2 in y
    tau-c    = 2 S / (n^2 (m - 1) / m)            m: the smaller of the numbers of distinct x and of distinct y
    rho      = Pearson's correlation of the ranks of x and of y, ties at their mean rank

All equal `scipy.stats.kendalltau` (variants b and c) and `spearmanr`.

The bootstrap draws *images* with replacement: the judgements of one image are not independent. A resample is a weight
per judgement, and S of all resamples comes from a few cumulative sums over the scores' order. With the ranks of y
written in binary, a pair's order in y is decided by the first bit in which the two ranks differ; so for each bit, among
the judgements that agree in the bits before it, those with a 1 are compared with those with a 0 of a lower score:
O(n log m) for a resample, exact, and one pass over an array (B, n) for B of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from captune.evaluation.statistics import bootstrap_counts, percentiles

FIGURES = ("tau_b", "tau_c", "spearman")


class _Bit(NamedTuple):
    """The judgements grouped by the higher bits of their rating's rank, in the order of scores within a group."""

    order: np.ndarray  # (n,)
    ones: np.ndarray  # (n,) whether the bit is set
    tie: np.ndarray  # (n,) the first judgement of the group with the same score
    group: np.ndarray  # (n,) the first judgement of the group


class Association:
    """tau-b, tau-c and Spearman's rho of scores and ratings, for many weightings of the judgements at once.

    Args:
        scores: (n,), finite.
        ratings: (n,), finite.
    """

    def __init__(self, scores: np.ndarray, ratings: np.ndarray) -> None:
        scores, ratings = np.asarray(scores, dtype=np.float64), np.asarray(ratings, dtype=np.float64)
        if scores.shape != ratings.shape or scores.ndim != 1:
            raise ValueError(f"{scores.shape} scores and {ratings.shape} ratings: one of each for a judgement")
        if not (np.isfinite(scores).all() and np.isfinite(ratings).all()):
            raise ValueError("scores and ratings must be finite")
        self.order = np.argsort(scores, kind="stable")
        self.x = np.unique(scores[self.order], return_inverse=True)[1]
        self.y = np.unique(ratings[self.order], return_inverse=True)[1]
        self.by_y = np.argsort(self.y, kind="stable")
        self.x_starts = _starts(self.x)
        self.y_starts = _starts(self.y[self.by_y])
        top = int(self.y.max(initial=0)).bit_length()
        self.bits = [self._bit(bit) for bit in reversed(range(top))]

    def _bit(self, bit: int) -> _Bit:
        prefix = self.y >> (bit + 1)
        order = np.argsort(prefix, kind="stable")
        groups = prefix[order]
        ties = groups * (self.x.max(initial=0) + 1) + self.x[order]
        first, tie = (np.repeat(_starts(own), np.diff([*_starts(own), len(own)])) for own in (groups, ties))
        return _Bit(order, (self.y[order] >> bit & 1).astype(bool), tie, first)

    def figures(self, weights: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Return {figure: (B,)}; nan where it is undefined, because all scores or all ratings are equal.

        Args:
            weights: (B, n), how often each judgement counts: whole numbers from 0. None: each once, B = 1.
        """
        weights = np.ones((1, len(self.order))) if weights is None else np.asarray(weights, dtype=np.float64)
        weights = weights[:, self.order]
        n = weights.sum(axis=1)
        tied_x = np.add.reduceat(weights, self.x_starts, axis=1)
        tied_y = np.add.reduceat(weights[:, self.by_y], self.y_starts, axis=1)
        pairs, pairs_x, pairs_y = _pairs(n), _pairs(tied_x).sum(axis=1), _pairs(tied_y).sum(axis=1)
        m = np.minimum((tied_x > 0).sum(axis=1), (tied_y > 0).sum(axis=1))
        same = self._same_order_less_opposite(weights)
        with np.errstate(divide="ignore", invalid="ignore"):
            tau_b = same / np.sqrt(pairs - pairs_x) / np.sqrt(pairs - pairs_y)
            tau_c = 2 * same / (n**2 * (m - 1) / m)
            rank_x, rank_y = _mean_ranks(tied_x), _mean_ranks(tied_y)
            centre = (n[:, None] + 1) / 2
            rank_x, rank_y = rank_x - centre, rank_y - centre
            product = np.einsum("bn,bn,bn->b", weights, rank_x[:, self.x], rank_y[:, self.y])
            rho = product / np.sqrt((tied_x * rank_x**2).sum(axis=1) * (tied_y * rank_y**2).sum(axis=1))
        undefined = m < 2
        found = {"tau_b": tau_b, "tau_c": tau_c, "spearman": rho}
        return {name: np.where(undefined, np.nan, np.clip(values, -1, 1)) for name, values in found.items()}

    def _same_order_less_opposite(self, weights: np.ndarray) -> np.ndarray:
        """(B,): S."""
        total = np.zeros(len(weights))
        for order, ones, tie, group in self.bits:
            own = weights[:, order]
            below = _before(np.where(ones, 0.0, own))
            total += np.einsum("bn,bn->b", own[:, ones], below[:, tie[ones]] - below[:, group[ones]])
            above = _before(np.where(ones, own, 0.0))
            total -= np.einsum("bn,bn->b", own[:, ~ones], above[:, tie[~ones]] - above[:, group[~ones]])
        return total


def _starts(values: np.ndarray) -> np.ndarray:
    """The first place of each run of equal values."""
    return np.flatnonzero(np.diff(values, prepend=values[:1] - 1)) if len(values) else np.zeros(0, dtype=int)


def _before(values: np.ndarray) -> np.ndarray:
    """(B, n): the sum of what stands before each place."""
    return np.cumsum(values, axis=1) - values


def _pairs(n: np.ndarray) -> np.ndarray:
    return n * (n - 1) / 2


def _mean_ranks(tied: np.ndarray) -> np.ndarray:
    """(B, distinct): the mean rank of each value from how often it occurs."""
    return np.cumsum(tied, axis=1) - tied + (tied + 1) / 2


def correlations(scores: Sequence[float], ratings: Sequence[float]) -> dict[str, float]:
    """Return tau_b, tau_c and spearman of scores and ratings, one of each for a judgement; nan where undefined."""
    found = Association(np.asarray(scores), np.asarray(ratings)).figures()
    return {name: float(values[0]) for name, values in found.items()}


class Ratio(NamedTuple):
    """A figure that is a sum over images divided by another, such as right pairs over pairs."""

    part: np.ndarray  # (images,)
    whole: np.ndarray  # (images,)

    def figures(self, counts: np.ndarray) -> np.ndarray:
        """(B,) from (B, images) counts."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return (counts @ self.part) / (counts @ self.whole)


def right_pairs(image: np.ndarray, scores: np.ndarray, ratings: np.ndarray, images: int) -> Ratio:
    """Of two captions of one image that people rated differently: does the better one score higher? A tie is half.

    Args:
        image: (n,), the number of each caption's image.
        scores: (n,), of each caption.
        ratings: (n,), the mean rating of each caption.
        images: how many images there are.
    """
    part, whole = np.zeros(images), np.zeros(images)
    order = np.argsort(image, kind="stable")
    for own in np.split(order, _starts(image[order])[1:]) if len(order) else ():
        first, second = np.triu_indices(len(own), 1)
        better = np.sign(ratings[own[first]] - ratings[own[second]])
        agreed = better * np.sign(scores[own[first]] - scores[own[second]])
        part[image[own[0]]] = ((agreed + 1) / 2)[better != 0].sum()
        whole[image[own[0]]] = (better != 0).sum()
    return Ratio(part, whole)


def won_battles(image: np.ndarray, difference: np.ndarray, winner: np.ndarray, images: int) -> Ratio:
    """Of the battles that people decided: did the winner score higher? Equal scores are half.

    Args:
        image: (n,), the number of each battle's image.
        difference: (n,), the score of the first caption less that of the second.
        winner: (n,), 1 the first, -1 the second, 0 a tie.
        images: how many images there are.
    """
    decided = winner != 0
    right = (winner * np.sign(difference) + 1) / 2
    return Ratio(
        np.bincount(image[decided], right[decided], minlength=images), np.bincount(image[decided], minlength=images)
    )


def tie_band(difference: np.ndarray, winner: np.ndarray) -> float:
    """The difference of scores from which a battle counts as decided, such that as many are ties as people called.

    As in CapArena's caption-level agreement: with t ties among the people's verdicts, the (t + 1)-th smallest |d|.
    """
    ties = int((winner == 0).sum())
    sizes = np.sort(np.abs(difference))
    return float(sizes[ties]) if ties < len(sizes) else math.inf


def agreement(image: np.ndarray, difference: np.ndarray, winner: np.ndarray, images: int) -> Ratio:
    """CapArena's caption-level agreement: how often the verdict (first, second, tie) is the people's.

    Args:
        image: (n,), the number of each battle's image.
        difference: (n,), the score of the first caption less that of the second; `tie_band` says which are ties.
        winner: (n,), 1 the first, -1 the second, 0 a tie.
        images: how many images there are.
    """
    band = tie_band(difference, winner)
    verdict = np.where((np.abs(difference) >= band) & (difference != 0), np.sign(difference), 0)
    agreed = (verdict == winner).astype(np.float64)
    return Ratio(np.bincount(image, agreed, minlength=images), np.bincount(image, minlength=images))


class Figures(NamedTuple):
    """Every figure of one scorer, and over the resamples of images.

    Attributes:
        values: {figure: its value}; nan where undefined.
        drawn: {figure: (B,)}, the same of each resample.
        n: the judgements that it is of.
    """

    values: dict[str, float]
    drawn: dict[str, np.ndarray]
    n: int

    def interval(self, level: float = 0.95) -> dict[str, tuple[float, float]]:
        """{figure: percentile interval}; none where it is undefined in a resample out of twenty, or more."""
        known = {name: values[np.isfinite(values)] for name, values in self.drawn.items()}
        return {
            name: percentiles(values, level)
            for name, values in known.items()
            if len(values) and len(values) >= 0.95 * len(self.drawn[name])
        }


def rated(
    image: np.ndarray, caption: np.ndarray, ratings: np.ndarray, scores: np.ndarray, *, resamples: int, seed: int
) -> Figures:
    """The figures of a scorer on ratings: tau_b, tau_c, spearman and pairwise_accuracy.

    Args:
        image: (n,), the number of each judgement's image.
        caption: (n,), the number of each judgement's caption; a caption belongs to one image.
        ratings: (n,).
        scores: (captions,), nan for a caption without a score: its judgements are left out.
        resamples: of images; 0: none are drawn.
        seed: of the resampling.
    """
    images = int(image.max(initial=-1)) + 1
    there = np.isfinite(scores[caption])
    image, caption, ratings = image[there], caption[there], ratings[there]
    cells, times = np.unique(np.stack([image, caption, ratings], axis=1), axis=0, return_counts=True)
    image_of, caption_of = cells[:, 0].astype(int), cells[:, 1].astype(int)
    association = Association(scores[caption_of], cells[:, 2])
    known, place = np.unique(caption, return_inverse=True)
    mean = np.bincount(place, ratings, minlength=len(known)) / np.maximum(1, np.bincount(place, minlength=len(known)))
    mean = mean.round(9)  # equal ratings in another order are a tie
    first = np.zeros(len(scores), dtype=int)
    first[caption] = image
    pairs = right_pairs(first[known], scores[known], mean, images)

    def figures(counts: np.ndarray) -> dict[str, np.ndarray]:
        return {**association.figures(counts[:, image_of] * times), "pairwise_accuracy": pairs.figures(counts)}

    return _resampled(figures, images, resamples, seed, len(ratings))


def fought(image: np.ndarray, winner: np.ndarray, difference: np.ndarray, *, resamples: int, seed: int) -> Figures:
    """The figures of a scorer on battles: pairwise_accuracy and agreement.

    Args:
        image: (n,), the number of each battle's image.
        winner: (n,), 1 the first caption, -1 the second, 0 a tie.
        difference: (n,), the score of the first caption less that of the second; nan: the battle is left out.
        resamples: of images; 0: none are drawn. The band of ties is that of all battles.
        seed: of the resampling.
    """
    images = int(image.max(initial=-1)) + 1
    there = np.isfinite(difference)
    own = (image[there], difference[there], winner[there], images)
    ratios = {"pairwise_accuracy": won_battles(*own), "agreement": agreement(*own)}

    def figures(counts: np.ndarray) -> dict[str, np.ndarray]:
        return {name: ratio.figures(counts) for name, ratio in ratios.items()}

    return _resampled(figures, images, resamples, seed, int(there.sum()))


def _resampled(
    figures: Callable[[np.ndarray], dict[str, np.ndarray]], images: int, resamples: int, seed: int, n: int
) -> Figures:
    """The figures of all images, and of `resamples` draws of as many images."""
    values = {name: float(own[0]) for name, own in figures(np.ones((1, images))).items()}
    if images < 2 or resamples < 1:
        return Figures(values, {}, n)
    parts = [figures(counts) for counts in _small(bootstrap_counts(images, resamples, seed), n)]
    return Figures(values, {name: np.concatenate([part[name] for part in parts]) for name in values}, n)


def _small(chunks: Iterator[np.ndarray], n: int, cells: int = 2**20) -> Iterator[np.ndarray]:
    """The same resamples, fewer at once: arrays of (b, n) that stay in the processor's cache are faster."""
    size = max(1, cells // max(1, n))
    for chunk in chunks:
        yield from (chunk[start : start + size] for start in range(0, len(chunk), size))


def difference(a: Figures, b: Figures, figure: str) -> dict[str, Any]:
    """Whether two scorers differ in a figure, on the same resamples of images.

    Returns:
        difference: a less b. interval: its 95% percentile interval over the resamples. p_value: two-sided, of the
        difference divided by its standard deviation over the resamples, taken as normal: unlike a count of resamples,
        it is not bounded by how many were drawn.
    """
    found: dict[str, Any] = {"difference": a.values[figure] - b.values[figure], "interval": None, "p_value": None}
    if figure in a.drawn and figure in b.drawn:
        drawn = a.drawn[figure] - b.drawn[figure]
        drawn = drawn[np.isfinite(drawn)]
        if len(drawn) > 1 and math.isfinite(found["difference"]):
            found["interval"] = percentiles(drawn, 0.95)
            deviation = float(drawn.std(ddof=1))
            size = abs(found["difference"])
            found["p_value"] = math.erfc(size / deviation / math.sqrt(2)) if deviation > 0 else float(size == 0)
    return found
