from __future__ import annotations

import random

import numpy as np
import pytest

from captune.scorers.reference.rouge import Rouge, _common


def test_equals_pycocoevalcap(corpus: dict) -> None:
    scorer = Rouge()
    rows = scorer.rows(corpus["captions"], references=corpus["references"])
    assert scorer.corpus(rows)["rouge"] == pytest.approx(corpus["corpus"]["rouge"], abs=1e-9)
    np.testing.assert_allclose(scorer.per_caption(rows), corpus["each"]["rouge"], atol=1e-9)


def test_the_common_subsequence_equals_the_textbook_table() -> None:
    rng = random.Random(0)
    for _ in range(200):
        a, b = ([rng.choice("abcd") for _ in range(rng.randint(1, 90))] for _ in range(2))
        table = np.zeros((len(a) + 1, len(b) + 1), dtype=int)
        for i, x in enumerate(a):
            for j, y in enumerate(b):
                table[i + 1, j + 1] = table[i, j] + 1 if x == y else max(table[i, j + 1], table[i + 1, j])
        places: dict[str, int] = {}
        for i, x in enumerate(a):
            places[x] = places.get(x, 0) | 1 << i
        assert _common(places, len(a), b) == table[-1, -1]


def test_precision_and_recall_may_come_from_different_references() -> None:
    """P = 1 from the long reference, R = 1 from the short one, as in the reference implementation."""
    value = Rouge().rows(["a b"], references=[["a b c d e f", "a"]])[0, 0]
    assert value == pytest.approx(1.0)
