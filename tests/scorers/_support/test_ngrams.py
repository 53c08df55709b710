from __future__ import annotations

import numpy as np

from captune.scorers._support.ngrams import _stable_order, count_ngrams


def test_counts_of_ngrams() -> None:
    vocabulary, lengths, grams = count_ngrams(["a b a b", "", "b", "a b a"])
    assert lengths.tolist() == [4, 0, 1, 3]
    names: list[list[tuple[str, ...]]] = [[()]]
    for g in grams:
        names.append([(*names[-1][p], vocabulary[w]) for p, w in zip(g.prefix, g.last, strict=True)])
    found = {(names[n][g], int(t)): int(c) for n, o in enumerate(grams, 1) for g, t, c in zip(*o[2:], strict=True)}
    assert found == {
        (("a",), 0): 2, (("a",), 3): 2, (("b",), 0): 2, (("b",), 2): 1, (("b",), 3): 1, (("a", "b"), 0): 2,
        (("a", "b"), 3): 1, (("b", "a"), 0): 1, (("b", "a"), 3): 1, (("a", "b", "a"), 0): 1, (("a", "b", "a"), 3): 1,
        (("b", "a", "b"), 0): 1, (("a", "b", "a", "b"), 0): 1,
    }  # fmt: skip


def test_the_order_of_many_ids() -> None:
    rng = np.random.default_rng(0)
    for high in (1, 10, 2**16, 2**16 + 1, 2**40):
        keys = rng.integers(0, high, size=(2, 500))
        np.testing.assert_array_equal(_stable_order(*keys), np.lexsort(keys))
    assert len(_stable_order(np.array([], dtype=np.int64))) == 0
