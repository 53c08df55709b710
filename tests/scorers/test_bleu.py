from __future__ import annotations

import numpy as np
import pytest

from captune.scorers.bleu import Bleu


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
