from __future__ import annotations

import pytest

from captune.scene_graphs.wordnet import wordnet


@pytest.mark.parametrize(
    ("word", "part", "lemma"),
    [("dogs", "n", "dog"), ("women", "n", "woman"), ("churches", "n", "church"), ("leaves", "n", "leaf"),
     ("bigger", "a", "big"), ("sitting", "v", "sit"), ("hardrock", "n", "hardrock"), ("people", "n", "people")],
)  # fmt: skip
def test_lemmas(word: str, part: str, lemma: str) -> None:
    assert wordnet().lemma(word, part) == lemma


def test_synonyms_are_those_of_wordnet() -> None:
    net = wordnet()
    assert {"auto", "automobile", "motorcar", "railcar"} <= net.synonyms("cars")  # any sense, any inflection
    assert net.synsets("Car") & net.synsets("automobile") and not net.synsets("man") & net.synsets("woman")
    assert "frank" in net.synonyms("hot dog") and not net.synonyms("captune")
    assert "Washington" in net.synonyms("washington")  # as WordNet spells it


def test_counts_and_files() -> None:
    net = wordnet()
    assert net.count("dog", "n") == 42 and net.count("dog", "a") is None
    assert net.file("dog") == 5 and net.file("table") in (6, 14) and net.file("captune") is None
