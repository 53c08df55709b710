"""Rank correlations against scipy's, weights against repetition, the bootstrap, and the figures of battles by hand."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kendalltau, spearmanr

from captune.evaluation import correlation
from captune.evaluation.correlation import Association, correlations, difference, fought, rated, tie_band


def expected(x: np.ndarray, y: np.ndarray) -> list[float]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of constant input
        return [*(kendalltau(x, y, variant=v).statistic for v in "bc"), spearmanr(x, y).statistic]


def found(x: np.ndarray, y: np.ndarray, weights: np.ndarray | None = None) -> list[float]:
    figures = Association(x, y).figures(weights)
    return [figures[name][0] for name in correlation.FIGURES]


@pytest.mark.parametrize("n", [2, 3, 17, 400])
@pytest.mark.parametrize("values", [1, 2, 4, 1000])
def test_scipy_gives_the_same(n: int, values: int) -> None:
    rng = np.random.default_rng([n, values])
    for levels in (2, 3, 5, 900):
        x, y = rng.integers(0, values, n).astype(float), rng.integers(0, levels, n).astype(float)
        np.testing.assert_allclose(found(x, y), expected(x, y), rtol=0, atol=1e-12)


def test_golden_values() -> None:
    """scipy 1.17.1: kendalltau(x, y, variant=...) and spearmanr(x, y)."""
    made = correlations([0.1, 0.4, 0.4, 0.2, 0.9, 0.7], [1, 2, 3, 1, 4, 4])
    assert made == pytest.approx(
        {"tau_b": 0.8894991799933215, "tau_c": 0.8888888888888888, "spearman": 0.9553302944424513}
    )


numbers = st.lists(st.tuples(st.integers(-3, 3), st.integers(1, 5), st.integers(0, 3)), min_size=2, max_size=30)


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(numbers)
def test_a_weight_is_how_often_a_judgement_stands_there(rows: list[tuple[int, int, int]]) -> None:
    x, y, times = np.array(rows).T
    if times.sum() < 2:
        return
    weighted = found(x, y, times[None].astype(float))
    repeated = expected(np.repeat(x, times), np.repeat(y, times))
    np.testing.assert_allclose(weighted, repeated, rtol=0, atol=1e-12)


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(numbers)
def test_symmetric_and_turned_round(rows: list[tuple[int, int, int]]) -> None:
    x, y, _ = np.array(rows).T.astype(float)
    np.testing.assert_allclose(found(x, y), found(y, x), atol=1e-12)
    np.testing.assert_allclose(found(-x, y), -np.array(found(x, y)), atol=1e-12)
    np.testing.assert_allclose(found(np.exp(x), y), found(x, y), atol=1e-12)  # the order alone counts


def test_all_scores_equal_is_undefined_not_zero() -> None:
    assert all(math.isnan(value) for value in found(np.ones(5), np.arange(5.0)))


def test_what_is_not_finite_or_not_paired_is_refused() -> None:
    with pytest.raises(ValueError, match="finite"):
        Association(np.array([1.0, math.nan]), np.array([1.0, 2.0]))
    with pytest.raises(ValueError, match="one of each"):
        Association(np.zeros(3), np.zeros(2))


def sample(images: int = 40, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """image and caption of each judgement, ratings, and scores that go with them; three grades of each caption."""
    rng = np.random.default_rng(seed)
    captions = np.repeat(np.arange(images), rng.integers(1, 6, images))
    quality = rng.normal(size=len(captions))
    caption = np.repeat(np.arange(len(captions)), 3)
    ratings = np.clip(np.round(2.5 + quality[caption] + rng.normal(size=len(caption)) / 2), 1, 4)
    return captions[caption], caption, ratings, quality + rng.normal(size=len(captions))


def test_ratings_by_their_definition() -> None:
    image, caption, ratings, scores = sample()
    figures = rated(image, caption, ratings, scores, resamples=0, seed=0)
    assert [figures.values[name] for name in correlation.FIGURES] == pytest.approx(expected(scores[caption], ratings))
    right = pairs = 0.0
    means = {c: ratings[caption == c].mean() for c in set(caption)}
    for a in means:
        for b in means:
            if a < b and image[caption == a][0] == image[caption == b][0] and means[a] != means[b]:
                right += (scores[a] > scores[b]) == (means[a] > means[b])
                pairs += 1
    assert figures.values["pairwise_accuracy"] == pytest.approx(right / pairs)
    assert figures.n == len(ratings) and figures.drawn == {} and figures.interval() == {}


def test_equal_ratings_in_another_order_are_a_tie() -> None:
    image, caption = np.zeros(6, dtype=int), np.repeat([0, 1], 3)
    ratings = np.array([0.1, 0.2, 0.3, 0.3, 0.2, 0.1])
    figures = rated(image, caption, ratings, np.array([1.0, 0.0]), resamples=0, seed=0)
    assert np.isnan(figures.values["pairwise_accuracy"])


def test_resamples_are_of_images_and_equal_scipy_on_the_drawn_judgements() -> None:
    image, caption, ratings, scores = sample(images=12)
    figures = rated(image, caption, ratings, scores, resamples=5, seed=3)
    counts = next(iter(correlation.bootstrap_counts(12, 5, 3)))
    for draw in range(5):
        rows = np.concatenate([np.flatnonzero(image == i) for i in np.repeat(np.arange(12), counts[draw].astype(int))])
        wanted = expected(scores[caption[rows]], ratings[rows])
        assert [figures.drawn[name][draw] for name in correlation.FIGURES] == pytest.approx(wanted)


def test_the_bootstrap_is_the_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    data = sample()
    one, two = (rated(*data, resamples=200, seed=1) for _ in range(2))
    other = rated(*data, resamples=200, seed=2)
    assert one.interval() == two.interval() != other.interval()
    small = correlation._small
    monkeypatch.setattr(correlation, "_small", lambda chunks, n: small(chunks, n, cells=1000))
    np.testing.assert_allclose(rated(*data, resamples=200, seed=1).drawn["tau_c"], one.drawn["tau_c"], atol=1e-12)
    low, high = one.interval()["tau_c"]
    assert low < one.values["tau_c"] < high


def test_a_caption_without_a_score_is_left_out() -> None:
    image, caption, ratings, scores = sample()
    holes = np.where(np.arange(len(scores)) % 4 == 0, np.nan, scores)
    kept = ~np.isnan(holes[caption])
    figures = rated(image, caption, ratings, holes, resamples=20, seed=0)
    assert figures.n == kept.sum()
    assert figures.values["tau_b"] == pytest.approx(expected(scores[caption[kept]], ratings[kept])[0])


def test_battles_by_hand() -> None:
    winner = np.array([1, 1, -1, 0, -1])
    gap = np.array([0.5, -0.2, -0.9, 0.05, 0.0])
    figures = fought(np.arange(5), winner, gap, resamples=0, seed=0)
    assert figures.values["pairwise_accuracy"] == pytest.approx((1 + 0 + 1 + 0.5) / 4)  # the tie counts for nothing
    assert tie_band(gap, winner) == 0.05  # one of five is a tie, and so is the smallest difference
    assert figures.values["agreement"] == pytest.approx(2 / 5)  # 0.05 decides for the first, where people saw a tie
    assert fought(np.arange(5), winner, gap * 0, resamples=0, seed=0).values["agreement"] == pytest.approx(1 / 5)
    assert tie_band(gap, np.zeros(5)) == math.inf


def test_two_scorers_differ_or_not() -> None:
    image, caption, ratings, scores = sample(images=200)
    noise = np.random.default_rng(9).normal(size=len(scores))
    good, same, poor = (
        rated(image, caption, ratings, own, resamples=300, seed=0) for own in (scores, scores + 1e-9 * noise, noise)
    )
    clear = difference(good, poor, "tau_c")
    assert clear["p_value"] < 1e-6 and clear["interval"][0] > 0
    assert difference(good, same, "tau_c")["p_value"] > 0.05
    assert difference(good, good, "tau_c") == {"difference": 0.0, "interval": (0.0, 0.0), "p_value": 1.0}


def test_one_image_has_no_interval() -> None:
    zero = np.zeros(3, dtype=int)
    figures = rated(zero, np.arange(3), np.arange(3.0), np.arange(3.0), resamples=50, seed=0)
    assert figures.values["tau_b"] == 1.0 and figures.interval() == {}
    assert difference(figures, figures, "tau_b")["p_value"] is None
