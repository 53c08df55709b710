"""How far raters agree beyond chance: Cohen's kappa of two, Fleiss' of any number.

    kappa = (p - e) / (1 - e)       p: the share of agreement, e: what chance would give

Cohen (1960): e from each rater's own shares of the categories. Fleiss (1971): e from the shares of all verdicts, and p
the mean over items of the agreeing pairs of verdicts; items may have different numbers of raters, at least two.
"""

from __future__ import annotations

import numpy as np


def cohen_kappa(first: np.ndarray, second: np.ndarray, categories: int) -> tuple[float, float | None]:
    """Return (share of agreement, kappa) of two raters' verdicts (n,) from 0 to `categories` - 1.

    Where both always say the same one thing, kappa is undefined: None.
    """
    table = np.zeros((categories, categories))
    np.add.at(table, (first, second), 1)
    table /= table.sum()
    return _kappa(float(np.trace(table)), float(table.sum(axis=0) @ table.sum(axis=1)))


def fleiss_kappa(counts: np.ndarray) -> tuple[float, float | None]:
    """Return (share of agreement, kappa) of verdicts counted by item and category, (items, categories).

    Each item needs two verdicts. Where all say the same one thing, kappa is undefined: None.
    """
    raters = counts.sum(axis=1)
    agreeing = (counts * (counts - 1)).sum(axis=1) / (raters * (raters - 1))
    shares = counts.sum(axis=0) / counts.sum()
    return _kappa(float(agreeing.mean()), float(shares @ shares))


def _kappa(agreement: float, chance: float) -> tuple[float, float | None]:
    return agreement, None if 1 - chance < 1e-12 else (agreement - chance) / (1 - chance)
