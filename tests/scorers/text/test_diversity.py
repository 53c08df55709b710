from __future__ import annotations

import random

import numpy as np
import pytest

from captune.errors import ScorerError
from captune.evaluation.statistics import evaluate
from captune.scorers import load_scorer
from captune.scorers._support import ptb

CAPTIONS = [
    "a dog runs on the beach",
    "a dog runs on the grass",
    "two dogs play",
    "A dog runs on the beach.",
    "",
    "a dog a dog a dog",
    "dog",
    "😀",
    "zebra",
]


def test_distinct_by_hand() -> None:
    scorer = load_scorer("diversity")
    values = scorer.corpus(scorer.rows(["a dog a dog", "a dog runs", "", "a dog runs."]))
    # 10 words: a, dog, runs; 3 + 2 + 0 + 2 bigrams: a dog, dog a, dog runs
    assert values == pytest.approx({"distinct_1": 3 / 10, "distinct_2": 3 / 7, "vocabulary": 3, "unique": 3 / 4})
    assert scorer(["a dog a dog", "a dog runs", ""]) == pytest.approx([1 / 2, 1, 0])


def test_a_set_without_words_is_not_diverse() -> None:
    scorer = load_scorer("diversity")
    assert scorer.corpus(scorer.rows(["", "😀"])) == {"distinct_1": 0, "distinct_2": 0, "vocabulary": 0, "unique": 0.5}
    assert scorer.rows([]).shape == (0, 6)


def test_vocabulary_is_healths() -> None:
    diversity, health = load_scorer("diversity"), load_scorer("health")
    assert (
        diversity.corpus(diversity.rows(CAPTIONS))["vocabulary"] == health.corpus(health.rows(CAPTIONS))["vocabulary"]
    )


@pytest.mark.parametrize("name", ["diversity", "self_bleu"])
def test_the_order_changes_nothing(name: str) -> None:
    scorer = load_scorer(name)
    values = scorer.corpus(scorer.rows(CAPTIONS))
    for seed in range(5):
        mixed = random.Random(seed).sample(CAPTIONS, len(CAPTIONS))
        assert scorer.corpus(scorer.rows(mixed)) == pytest.approx(values, abs=1e-12)


@pytest.mark.parametrize("name", ["diversity", "self_bleu"])
def test_no_figure_has_an_interval(name: str) -> None:
    assert evaluate(CAPTIONS, {}, [name], bootstrap=20)[name].interval == {}


def self_bleu(captions: list[str], n: int) -> list[float]:
    """The definition, pair by pair."""
    words = [ptb.words(caption) for caption in captions]
    scores = []
    for i, own in enumerate(words):
        others = words[:i] + words[i + 1 :]
        orders = min(n, len(own))
        log = 0.0
        for k in range(1, orders + 1):
            grams = [tuple(own[j : j + k]) for j in range(len(own) - k + 1)]
            hits = 0
            for gram in set(grams):
                most = max(sum(tuple(o[j : j + k]) == gram for j in range(len(o) - k + 1)) for o in others)
                hits += min(grams.count(gram), most)
            log += np.log((hits or 0.1) / len(grams)) / orders
            if k == 1 and not hits:
                log = -np.inf
        closest = min((abs(len(o) - len(own)), len(o)) for o in others)[1]
        scores.append(float(np.exp(log + min(0.0, 1 - closest / len(own)))) if own else 0.0)
    return scores


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_self_bleu_is_the_definition(n: int, golden: dict) -> None:
    scorer = load_scorer("self_bleu" if n == 4 else f"self_bleu:{n}")
    human = [text for item in golden["flickr8k"]["items"][:25] for text in [item["caption"], *item["references"][:2]]]
    for captions in (CAPTIONS, human, ["a dog", "a cat sits on a mat"], ["a dog", "a cat", "a cat sits on a dog"]):
        rows = scorer.rows(captions)
        np.testing.assert_allclose(rows[:, 0], self_bleu(captions, n), atol=1e-12)
    assert f"|n:{n}|" in scorer.signature


def test_self_bleu_of_nltk() -> None:
    """nltk 3.10.4: sentence_bleu(others, caption, smoothing_function=method1, auto_reweigh=True)."""
    captions = ["a dog runs on the beach", "a dog runs on the grass", "two dogs play in the snow", "a dog a dog a dog"]
    expected = [0.7598356856515925, 0.7598356856515925, 0.040824829046386304, 0.08633400213704504]
    np.testing.assert_allclose(load_scorer("self_bleu").rows(captions)[:, 0], expected, atol=1e-12)


def test_a_collapsed_captioner() -> None:
    scorer = load_scorer("self_bleu")
    assert scorer.corpus(scorer.rows(["a house"] * 20))["self_bleu"] == pytest.approx(1)
    assert scorer.corpus(scorer.rows(["a red house", "two blue fish"]))["self_bleu"] == 0
    diversity = load_scorer("diversity")
    assert diversity.corpus(diversity.rows(["a house"] * 20))["unique"] == pytest.approx(1 / 20)


def test_one_caption_has_no_self_bleu() -> None:
    with pytest.raises(ScorerError, match="only one"):
        load_scorer("self_bleu").rows(["a dog"])
    assert load_scorer("self_bleu").rows([]).shape == (0, 1)
    for wrong in ("0", "5", "two"):
        with pytest.raises(ValueError, match="self_bleu:3"):
            load_scorer(f"self_bleu:{wrong}")
