"""Kappa against published worked examples."""

from __future__ import annotations

import numpy as np
import pytest

from captune.evaluation.agreement import cohen_kappa, fleiss_kappa


def test_cohen() -> None:  # 45 yes/yes, 15 yes/no, 25 no/yes, 15 no/no of 100
    first = np.repeat([0, 0, 1, 1], [45, 15, 25, 15])
    second = np.repeat([0, 1, 0, 1], [45, 15, 25, 15])
    agreement, kappa = cohen_kappa(first, second, 2)
    assert (agreement, kappa) == pytest.approx((0.6, (0.6 - 0.54) / (1 - 0.54)))
    assert cohen_kappa(first, first, 3) == (1.0, 1.0)
    assert cohen_kappa(np.zeros(4, int), np.zeros(4, int), 3) == (1.0, None)


def test_fleiss() -> None:  # the example of ten subjects, fourteen raters and five categories: 0.210
    counts = np.array(
        [[0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1],
         [7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7]]
    )  # fmt: skip
    agreement, kappa = fleiss_kappa(counts)
    assert (agreement, kappa) == pytest.approx((0.378, 0.210), abs=5e-4)
    assert fleiss_kappa(np.array([[2, 0], [3, 0]])) == (1.0, None)
    mixed = fleiss_kappa(np.array([[2, 0], [1, 2]]))
    assert mixed[0] == pytest.approx((1 + 1 / 3) / 2)
