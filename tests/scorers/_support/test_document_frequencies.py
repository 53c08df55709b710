from __future__ import annotations

import random

import pytest

from captune.scorers._support import document_frequencies
from captune.scorers._support.document_frequencies import DocumentFrequencies
from captune.scorers._support.ngrams import count_ngrams

TRAIN = [["a dog runs", "the dog is running"], ["a cat sleeps", "the cat is sleeping on a mat"], ["a dog and a cat"]]


def test_the_digest_is_that_of_the_content() -> None:
    def digest(references: list[list[str]]) -> str:
        return DocumentFrequencies.of(references).digest

    assert digest(TRAIN) == digest(TRAIN[::-1]) == digest([own[::-1] for own in TRAIN])
    assert digest(TRAIN) != digest(TRAIN[:2]) != digest([*TRAIN[:2], ["a dog"]])


@pytest.mark.parametrize("at_once", [1, 2, 3, 7, 50])
def test_counted_in_pieces_they_are_the_same(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(0)
    references = [[" ".join(rng.choices("abcdefgh", k=rng.randrange(9))) for _ in range(rng.randrange(1, 4))]
                  for _ in range(40)]  # fmt: skip
    whole = DocumentFrequencies.of(references)
    monkeypatch.setattr(document_frequencies, "_AT_ONCE", at_once)
    assert DocumentFrequencies.of(iter(references)).digest == whole.digest
    assert whole.images == 40


def test_without_words_nothing_is_known() -> None:
    vocabulary, _, grams = count_ngrams(["a b"])
    assert DocumentFrequencies.of([[""]]).lookup(vocabulary, grams)[0].tolist() == [0, 0]
