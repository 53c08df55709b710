from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest

from captune.scorers._support import ngrams
from captune.scorers.reference import bleu
from captune.scorers.reference.bleu import Bleu


def by_hand(caption: str, references: list[str]) -> list[float]:
    """A row from its definition, with dicts."""

    def grams(text: str, n: int) -> Counter:
        words = text.split()
        return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))

    length = len(caption.split())
    closest = min((len(r.split()) for r in references), key=lambda r: (abs(r - length), r))
    guessed = [max(0, length - n + 1) for n in range(1, 5)]
    correct = [
        sum(min(k, max(grams(r, n)[g] for r in references)) for g, k in grams(caption, n).items()) for n in range(1, 5)
    ]
    return [length, closest, *guessed, *correct]


def test_rows_as_defined_for_any_number_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(0)

    def text() -> str:
        return " ".join(rng.choice("xyz") for _ in range(rng.choice((0, 1, 2, 3, 5, 9, 30))))

    captions = [text() for _ in range(120)]
    references = [[text() for _ in range(rng.randint(1, 6))] for _ in captions]
    expected = [by_hand(c, r) for c, r in zip(captions, references, strict=True)]
    for at_once in (1, 7, 4096):
        monkeypatch.setattr(bleu, "_AT_ONCE", at_once)
        monkeypatch.setattr(ngrams, "_AT_ONCE", at_once)
        np.testing.assert_array_equal(Bleu().rows(captions, references=references), expected)
    assert Bleu().rows([], references=[]).shape == (0, 10)


def test_equals_pycocoevalcap(corpus: dict) -> None:
    scorer = Bleu()
    rows = scorer.rows(corpus["captions"], references=corpus["references"])
    values = scorer.corpus(rows)
    assert next(iter(values)) == "bleu_4"
    for n in range(1, 5):
        assert values[f"bleu_{n}"] == pytest.approx(corpus["corpus"][f"bleu_{n}"], abs=1e-9)
    np.testing.assert_allclose(scorer.per_caption(rows), corpus["each"]["bleu_4"], atol=1e-9)


def test_a_tie_goes_to_the_shorter_reference() -> None:
    rows = Bleu().rows(["a b c d"], references=[["a b c d e", "a b c"]])
    assert rows[0, :2].tolist() == [4, 3]


def test_no_reference_is_an_error_that_names_the_caption() -> None:
    with pytest.raises(ValueError, match="caption 1 has no reference"):
        Bleu().rows(["a", "b"], references=[["a"], []])
    with pytest.raises(TypeError, match="give a list"):
        Bleu().rows(["a dog"], references=["a dog"])


def test_takes_no_argument() -> None:
    with pytest.raises(ValueError, match="takes no argument"):
        Bleu("4")
