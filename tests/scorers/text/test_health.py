from __future__ import annotations

import numpy as np
import pytest

from captune.evaluation.statistics import evaluate
from captune.scorers import load_scorer
from captune.scorers.text.health import Health, Length


def test_figures_of_known_captions() -> None:
    captions = ["A dog runs on the beach.", "a dog a dog a dog", "a boy in a", "", "😀"]
    scorer = Health()
    values = scorer.corpus(scorer.rows(captions))
    assert list(values) == ["length", "repetition", "bad_endings", "empty", "vocabulary"]
    assert values["length"] == pytest.approx((6 + 6 + 4 + 0 + 0) / 5)
    # "a dog a dog a dog": 5 2-grams of which 2 are distinct, 4 3-grams of which 2 are distinct
    assert values["repetition"] == pytest.approx((1 - 4 / 9) / 5)
    assert values["bad_endings"] == pytest.approx(1 / 5)
    assert values["empty"] == pytest.approx(2 / 5)
    assert values["vocabulary"] == len({"a", "dog", "runs", "on", "the", "beach", "boy", "in"})


@pytest.mark.parametrize("caption", ["a dog on the", "a dog with", "a red ball and", "a boy and his", "the dog is."])
def test_bad_endings(caption: str) -> None:
    assert Health().rows([caption])[0, 2] == 1


@pytest.mark.parametrize(
    "caption", ["a man with a hat on", "the sea behind her", "dogs playing outside", "a dog", "the"]
)
def test_what_may_end_a_caption(caption: str) -> None:
    assert Health().rows([caption])[0, 2] == (caption == "the")


def test_human_captions_are_healthy(golden: dict) -> None:
    captions = [text for item in golden["flickr8k"]["items"] for text in [item["caption"], *item["references"]]]
    values = Health().corpus(Health().rows(captions))
    assert values["bad_endings"] < 0.005 and values["repetition"] < 0.01 and values["empty"] == 0
    assert 10 < values["length"] < 12


def test_the_vocabulary_has_no_interval() -> None:
    result = evaluate(["a dog", "a cat", "a dog runs"], {}, ["health"])["health"]
    assert set(result.interval) == {"length", "repetition", "bad_endings", "empty"}


def test_length_is_a_reward() -> None:
    scorer = load_scorer("length")
    assert scorer(["a dog runs.", "", [{"role": "assistant", "content": "a dog"}]]) == [3.0, 0.0, 2.0]
    np.testing.assert_array_equal(Length().rows([]), np.zeros((0, 1)))


def test_repetition_is_the_share_of_n_grams_said_before() -> None:
    loop, two = "a red car and a red car", "a big red car left of a big blue boat"
    assert load_scorer("repetition").rows([loop, two, "a car", ""]).ravel().tolist() == pytest.approx([1 / 5, 0, 0, 0])
    assert load_scorer("repetition:2").rows([loop, two]).ravel().tolist() == pytest.approx([2 / 6, 1 / 9])
    for wrong in ("0", "three"):
        with pytest.raises(ValueError, match="repetition:3"):
            load_scorer(f"repetition:{wrong}")
