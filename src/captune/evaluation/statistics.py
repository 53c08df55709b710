"""Corpus figures with bootstrap intervals, and tests between two systems on the same images.

Both work on a scorer's rows (N, D). Where the corpus figures are functions of the rows' totals, B resamples are one
product of a (B, N) matrix of counts with the rows, so that a thousand resamples of BLEU cost milliseconds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any, TypeVar

import numpy as np

from captune.errors import EvaluationError
from captune.scorers import Scorer, check_needs, load_scorer

_CELLS = 2**22  # resamples are drawn in chunks of about this many cells
_CHUNK_LIMIT = 256


@dataclass(frozen=True)
class Result:
    """What a scorer says about a set of captions."""

    values: dict[str, float]  # corpus figures, the primary one first
    interval: dict[str, tuple[float, float]]  # 95% percentile bootstrap over captions; none where it would mean nothing
    per_caption: np.ndarray = field(repr=False)  # (N,)
    rows: np.ndarray = field(repr=False)  # (N, D): what `paired` compares
    signature: str
    n: int
    truncated: float = 0.0  # the share of the captions that the scorer's encoder cut

    def to_pandas(self) -> Any:
        """Return a pandas DataFrame: a row per figure, columns value, low and high (nan without an interval)."""
        import pandas as pd

        nothing = (float("nan"), float("nan"))
        rows = {key: (value, *self.interval.get(key, nothing)) for key, value in self.values.items()}
        return pd.DataFrame.from_dict(rows, orient="index", columns=["value", "low", "high"])

    def _repr_html_(self) -> str:
        """Show the figures as a table in notebooks, the signature below it."""
        return f"{self.to_pandas().to_html(float_format='%.4f', na_rep='')}<small>{escape(self.signature)}</small>"

    @property
    def value(self) -> float:
        """The primary corpus figure."""
        return next(iter(self.values.values()))


Said = TypeVar("Said")


class Results(dict[str, Said]):
    """What an evaluation found: a dict that notebooks show as one table.

    Attributes:
        rows: a row per figure: scorer, figure, value, low, high, n, signature; of files, each with its file.
    """

    def __init__(self, found: Mapping[str, Said], rows: Sequence[Mapping[str, Any]]) -> None:
        super().__init__(found)
        self.rows = rows

    def to_pandas(self) -> Any:
        """Return the rows as a pandas DataFrame."""
        import pandas as pd

        return pd.DataFrame(self.rows).astype({"low": float, "high": float})

    def _repr_html_(self) -> str:
        """Show the figures as a table, the signatures below it."""
        shown = self.to_pandas().drop(columns="signature", errors="ignore")
        signatures = dict.fromkeys(f"{row['scorer']}: {row['signature']}" for row in self.rows)
        below = "<br>".join(map(escape, signatures))
        return f"{shown.to_html(index=False, float_format='%.4f', na_rep='')}<small>{below}</small>"


@dataclass(frozen=True)
class Comparison:
    """System a against system b on the same images; every dict is keyed by figure."""

    difference: dict[str, float]  # a - b
    interval: dict[str, tuple[float, float]]  # 95% paired bootstrap of the difference
    p_value: dict[str, float]  # two-sided paired permutation test
    n: int
    resamples: int


def evaluate(
    captions: Sequence[str],
    columns: Mapping[str, Any],
    scorers: Sequence[Scorer | str],
    *,
    bootstrap: int = 1000,
    seed: int = 0,
) -> Results[Result]:
    """Score captions with every scorer, by name; see `Results` for the table and the data frame.

    The intervals are percentiles of the corpus figures over `bootstrap` resamples of captions (0: no intervals). They
    hold what the references or a model give fixed: CIDEr's document frequencies are not drawn again. One caption has no
    interval. Every scorer sees the same resamples, which depend on the seed and the number of captions only.

    Raises:
        MissingColumn: before any work, when a scorer needs a column that is not there.
    """
    chosen = [load_scorer(s) if isinstance(s, str) else s for s in scorers]
    if not captions:
        raise EvaluationError("there is no caption to score")
    wrong = next((i for i, c in enumerate(captions) if not isinstance(c, str)), None)
    if wrong is not None:
        raise TypeError(f"caption {wrong} is {captions[wrong]!r}, not a text")
    check_needs(chosen, columns, len(captions))
    results: dict[str, Result] = {}
    for scorer in chosen:
        rows = scorer.measure(captions, columns)
        values = scorer.corpus(rows)
        results[scorer.name] = Result(
            values=values,
            interval=bootstrap_interval(scorer, rows, list(values), resamples=bootstrap, seed=seed),
            per_caption=scorer.per_caption(rows),
            rows=rows,
            signature=scorer.signature,
            n=len(captions),
            truncated=scorer.truncated,
        )
    return Results(results, [row for name, result in results.items() for row in figures(name, result)])


def figures(scorer: str, result: Result) -> list[dict[str, Any]]:
    """Return a row per figure of a result: scorer, figure, value, low, high, n, signature."""
    rows = []
    for key, value in result.values.items():
        low, high = result.interval.get(key, (None, None))
        said = {"n": result.n, "signature": result.signature}
        rows.append({"scorer": scorer, "figure": key, "value": value, "low": low, "high": high, **said})
    return rows


def bootstrap_interval(
    scorer: Scorer, rows: np.ndarray, keys: Sequence[str], *, resamples: int, seed: int, level: float = 0.95
) -> dict[str, tuple[float, float]]:
    """The percentile interval of each figure over resampled rows; no entry for fewer than two rows.

    Of a figure that some resamples have not (nan) it is that of the others; nor has one that none has an entry.
    """
    keys = [key for key in keys if key not in scorer.no_interval]
    if len(rows) < 2 or resamples < 1 or not keys:
        return {}
    figures = _figures(scorer, rows, keys, bootstrap_counts(len(rows), resamples, seed))
    return _intervals(figures, level)


def paired(
    a: np.ndarray, b: np.ndarray, scorer: Scorer, *, resamples: int = 10_000, seed: int = 0, level: float = 0.95
) -> Comparison:
    """Is the difference between two systems more than chance? Row i of `a` and of `b` are about the same image.

    The interval is a paired bootstrap: the same resampled images for both systems. The p-value is a permutation test:
    under the null hypothesis the two captions of an image are exchangeable, so each image's rows are swapped or not by
    a coin, and p = (1 + #{|difference| >= the one observed}) / (1 + resamples), two-sided. A figure that one of the
    systems has not (nan) has no interval and no p-value.
    """
    if a.shape != b.shape:
        raise EvaluationError(
            f"paired: the systems' rows differ in shape, {a.shape} and {b.shape}; score the same images"
        )
    first, second = scorer.corpus(a), scorer.corpus(b)
    difference = {key: first[key] - second[key] for key in first}
    keys = [key for key in first if key not in scorer.no_interval and math.isfinite(difference[key])]
    if len(a) < 2:
        return Comparison(difference, {}, {}, len(a), 0)

    counts = bootstrap_counts(len(a), resamples, seed)
    drawn_a = _figures(scorer, a, keys, counts)
    drawn_b = _figures(scorer, b, keys, bootstrap_counts(len(a), resamples, seed))
    interval = _intervals({key: drawn_a[key] - drawn_b[key] for key in keys}, level)

    both = np.concatenate([a, b])
    swapped_a = _figures(scorer, both, keys, _swaps(len(a), resamples, seed), size=len(a))
    swapped_b = _figures(scorer, both, keys, (1 - c for c in _swaps(len(a), resamples, seed)), size=len(a))
    p_value = {}
    for key in keys:
        drawn, seen = np.abs(swapped_a[key] - swapped_b[key]), abs(difference[key])
        as_far = ~(drawn < seen - 1e-12 * max(1.0, seen))  # nan, too: where it is not known, it counts against
        p_value[key] = float((1 + np.sum(as_far)) / (1 + resamples))
    return Comparison(difference, interval, p_value, len(a), resamples)


def permutation_test(difference: np.ndarray, *, resamples: int = 10_000, seed: int = 0) -> float:
    """Return the two-sided p-value of a paired permutation test of a mean difference.

    Args:
        difference: (N,), a score of system a less that of system b, on the same images.
        resamples: how many random sign flips are compared with the difference observed.
        seed: of the flips.
    """
    if len(difference) < 2:
        return 1.0
    totals = [(2 * keep[:, : len(difference)] - 1) @ difference for keep in _swaps(len(difference), resamples, seed)]
    flipped, seen = np.abs(np.concatenate(totals)) / len(difference), abs(float(difference.mean()))
    return float((1 + np.sum(flipped >= seen - 1e-12 * max(1.0, seen))) / (1 + resamples))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction (1979): p-values that stay valid when all of these tests are looked at together."""
    order = np.argsort(p_values, kind="stable")
    scaled = np.array(p_values, dtype=float)[order] * np.arange(len(p_values), 0, -1)
    corrected = np.empty(len(p_values))
    corrected[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return corrected.tolist()


def _chunks(n: int, resamples: int) -> Iterator[int]:
    size = max(1, min(_CHUNK_LIMIT, _CELLS // n))
    for start in range(0, resamples, size):
        yield min(size, resamples - start)


def bootstrap_counts(n: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Chunks (b, n): how often each row is drawn in each of b resamples of n rows."""
    rng = np.random.default_rng(seed)
    for b in _chunks(n, resamples):
        drawn = rng.integers(0, n, size=(b, n)) + np.arange(b)[:, None] * n
        yield np.bincount(drawn.ravel(), minlength=b * n).reshape(b, n).astype(np.float64)


def _swaps(n: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Chunks (b, 2n) over the rows of two systems, one below the other: 1 where system a takes the row."""
    rng = np.random.default_rng([seed, 1])
    for b in _chunks(n, resamples):
        keep = rng.integers(0, 2, size=(b, n)).astype(np.float64)
        yield np.concatenate([keep, 1 - keep], axis=1)


def _figures(
    scorer: Scorer, rows: np.ndarray, keys: Sequence[str], counts: Iterator[np.ndarray], size: int | None = None
) -> dict[str, np.ndarray]:
    """Each figure over all resamples, (B,). `counts` says how often a resample holds each row."""
    n = size or len(rows)
    rows = rows.astype(np.float64)
    figures: Callable[[np.ndarray], dict[str, np.ndarray]]
    if scorer.is_additive:

        def figures(chosen: np.ndarray) -> dict[str, np.ndarray]:
            return scorer.from_totals(chosen @ rows, n)

    else:

        def figures(chosen: np.ndarray) -> dict[str, np.ndarray]:
            one_by_one = [scorer.corpus(np.repeat(rows, c.astype(int), axis=0)) for c in chosen]
            return {key: np.array([figure[key] for figure in one_by_one]) for key in keys}

    parts = [figures(chosen) for chosen in counts]
    return {key: np.concatenate([part[key] for part in parts]) for key in keys}


def _intervals(figures: Mapping[str, np.ndarray], level: float) -> dict[str, tuple[float, float]]:
    """The intervals of resampled figures, over the resamples that have the figure."""
    found = {key: values[~np.isnan(values)] for key, values in figures.items()}
    return {key: percentiles(values, level) for key, values in found.items() if len(values)}


def percentiles(values: np.ndarray, level: float) -> tuple[float, float]:
    """The ends of the percentile interval of resampled values."""
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
