from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest

from captune.scene_graphs import SceneGraph
from captune.scene_graphs.matching import Matcher
from captune.scorers.reference.capture import Capture

GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "capture.json").read_text(encoding="utf-8"))


def encode(phrases: list[str]) -> np.ndarray:
    vectors = np.array([GOLDEN["vectors"][phrase] for phrase in phrases])
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def graph(side: list) -> SceneGraph:
    objects, attributes, relations = side
    pairs = tuple((thing, word) for thing, own in attributes.items() for word in own)
    return SceneGraph(tuple(objects), pairs, tuple(map(tuple, relations)))


@pytest.mark.parametrize("pair", GOLDEN["pairs"], ids=lambda pair: " ".join(pair["caption"][0]))
def test_published_equals_capture_metric(pair: dict) -> None:
    """Golden values of capture-metric 0.1.13; see benchmarks/parity/capture.py."""
    capture = Capture("?compat=published")
    capture.matcher.encode = encode
    figures = capture.compare(graph(pair["caption"]), graph(pair["reference"]))
    np.testing.assert_allclose(figures, pair["figures"], atol=1e-9)


def no_encoder(phrases: list[str]) -> np.ndarray:
    raise AssertionError(f"nothing is left for the soft match, yet {phrases} are encoded")


def test_a_part_of_a_word_is_a_synonym_as_published_only() -> None:
    published = Matcher(no_encoder, published=True)
    assert published.match(["man", "car"], ["woman", "scarf"]) == (2.0, 2.0)
    assert published.match([("man", "on", "car")], [("woman", "on", "scarf")]) == (1.0, 1.0)
    apart = Matcher(lambda phrases: np.eye(4)[[["man", "car", "woman", "scarf"].index(p) for p in phrases]])
    assert apart.match(["man", "car"], ["woman", "scarf"]) == (0.0, 0.0)


def test_synonyms_share_a_synonym_set() -> None:
    matcher = Matcher(no_encoder)
    assert matcher.match(["automobile", "big"], ["large", "car"]) == (2.0, 2.0)
    assert matcher.match([("man", "on", "automobile")], [("man", "on", "car")]) == (1.0, 1.0)
    assert matcher.match([], ["car"]) == (0.0, 0.0) and matcher.scores([], []) == (0.0, 0.0, 0.0)


def test_soft_matches_are_many_to_one_and_without_threshold() -> None:
    vectors = {"a1": [1, 0], "a2": [0.6, 0.8], "b1": [1, 0]}
    matcher = Matcher(lambda phrases: np.array([vectors[p] for p in phrases], dtype=float))
    assert matcher.match(["a1", "a2"], ["b1"]) == pytest.approx((1.6, 1.0))
    precision, recall, f1 = matcher.scores(["a1", "a2"], ["b1"])
    assert (precision, recall, f1) == pytest.approx((0.8, 1.0, 2 * 0.8 / 1.8))


def test_the_order_of_phrases_changes_nothing_by_default() -> None:
    random_numbers, phrases = random.Random(0), sorted(GOLDEN["vectors"])
    pairs = [(random_numbers.sample(phrases, 9), random_numbers.sample(phrases, 9)) for _ in range(30)]
    outcomes = {False: 0, True: 0}
    for published in outcomes:
        matcher = Matcher(encode, published=published)
        for a, b in pairs:
            values = {matcher.match(random_numbers.sample(a, 9), random_numbers.sample(b, 9)) for _ in range(5)}
            outcomes[published] += len({(round(x, 9), round(y, 9)) for x, y in values}) > 1
    assert outcomes[False] == 0 and outcomes[True] > 0  # the published flaw shows on the same phrases


def test_scores_stay_between_0_and_1_whatever_the_encoder() -> None:
    opposite = {"dog": [1.0, 0.0], "sky": [-1.0, 0.0]}
    scores = [Matcher(lambda phrases: np.array([opposite[p] for p in phrases]), published=p).scores(["dog"], ["sky"])
              for p in (False, True)]  # fmt: skip
    assert scores[0] == (0.0, 0.0, 0.0) and scores[1][0] == pytest.approx(-1, abs=1e-5)
