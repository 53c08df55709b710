"""Strengths against independent fits, and what the model says where the maximum of the likelihood does not exist."""

from __future__ import annotations

import math

import numpy as np
import pytest

from captune.evaluation.bradley_terry import PRIOR, Fought, fit, outcome_probabilities

optimize = pytest.importorskip("scipy.optimize")


def drawn(
    strengths: list[float], tie: float, n: int, seed: int, length: float = 0.0, images: int | None = None
) -> Fought:
    rng = np.random.default_rng(seed)
    pairs = np.array([rng.choice(len(strengths), 2, replace=False) for _ in range(n)])
    words = rng.integers(3, 30, (n, 2))
    d = np.array(strengths)[pairs[:, 0]] - np.array(strengths)[pairs[:, 1]]
    d = d + length * np.log2((words[:, 0] + 1) / (words[:, 1] + 1))
    outcome = np.array([rng.choice([1, 0, -1], p=outcome_probabilities(own, tie)) for own in d])
    return Fought(pairs[:, 0], pairs[:, 1], outcome, rng.integers(0, images or n, n), words)


def independent(battles: Fought, systems: int, ties: bool, length: bool) -> np.ndarray:
    """The maximum as a general optimiser finds it: odds multiplied out, the first system's strength is 0."""

    def loss(values: np.ndarray) -> float:
        theta = np.concatenate([[0.0], values[: systems - 1]])
        strength = np.exp(theta)
        total = 0.0
        for i, j, outcome, (w, v) in zip(battles.first, battles.second, battles.outcome, battles.words, strict=True):
            a, b = strength[i], strength[j]
            if length:
                a = a * ((w + 1) / (v + 1)) ** (values[-1] / math.log(2))
            nu = math.exp(values[systems - 1]) if ties else 0.0
            middle = nu * math.sqrt(a * b)
            total -= math.log({1: a, 0: middle, -1: b}[int(outcome)] / (a + b + middle))
        return total

    found = optimize.minimize(
        loss, np.zeros(systems - 1 + ties + length), method="BFGS", options={"gtol": 1e-7, "xrtol": 1e-12}
    )
    theta = np.concatenate([[0.0], found.x[: systems - 1]])
    return np.concatenate(
        [theta - theta.mean(), np.exp(found.x[systems - 1 : systems - 1 + ties]), found.x[-1:] if length else []]
    )


@pytest.mark.parametrize(("tie", "length"), [(0.0, False), (0.7, False), (0.5, True)])
def test_equals_an_independent_fit(tie: float, length: bool) -> None:
    battles = drawn([0.8, 0.1, -0.2, -0.7], tie, 300, seed=3, length=0.4 if length else 0.0)
    own = fit(battles, 4, length=length)
    assert own is not None and not own.prior
    other = independent(battles, 4, tie > 0, length)
    mine = [*own.strengths, *([own.tie] if tie else []), *([own.length] if length else [])]
    assert mine == pytest.approx(other, abs=1e-6)


def test_two_systems_are_a_logit() -> None:
    battles = Fought(
        np.zeros(10, int), np.ones(10, int), np.array([1] * 7 + [-1] * 3), np.arange(10), np.full((10, 2), 5)
    )
    own = fit(battles, 2)
    assert own is not None
    assert own.strengths[0] - own.strengths[1] == pytest.approx(math.log(7 / 3), abs=1e-12)
    assert own.strengths.sum() == pytest.approx(0, abs=1e-12)


def test_order_of_battles_and_sides_does_not_matter() -> None:
    battles = drawn([0.5, 0.0, -0.5], 0.5, 200, seed=1)
    swapped = Fought(battles.second, battles.first, -battles.outcome, battles.image, battles.words[:, ::-1])
    turned = Fought(*(entries[::-1] for entries in swapped))
    a, b = fit(battles, 3, length=True), fit(turned, 3, length=True)
    assert a is not None and b is not None
    assert b.strengths == pytest.approx(a.strengths, abs=1e-10)
    assert (b.length, b.tie) == pytest.approx((a.length, a.tie), abs=1e-10)
    assert b.error == pytest.approx(a.error, abs=1e-10)


def test_intervals_are_those_of_a_bootstrap_over_images() -> None:
    battles = drawn([0.6, 0.0, -0.6], 0.6, 400, seed=5, images=80)
    own = fit(battles, 3)
    rng, found = np.random.default_rng(0), []
    rows = [np.flatnonzero(battles.image == image) for image in range(80)]
    for _ in range(300):
        chosen = np.concatenate([rows[image] for image in rng.integers(0, 80, 80)])
        again = fit(Fought(*(entries[chosen] for entries in battles)), 3)
        assert again is not None
        found.append(again.strengths)
    assert own is not None
    assert own.error == pytest.approx(np.std(found, axis=0), rel=0.15)


def test_intervals_cover() -> None:
    truth, covered = np.array([0.6, 0.0, -0.6]), 0
    for seed in range(150):
        own = fit(drawn(list(truth), 0.5, 150, seed=seed), 3)
        assert own is not None
        covered += sum(low <= t <= high for t, (low, high) in zip(truth, map(own.interval, range(3)), strict=True))
    assert 0.91 <= covered / 450 <= 0.98


@pytest.mark.parametrize("outcomes", [[1, 1, 1], [1, 1, 0][:2], [-1]])
def test_a_system_that_won_every_battle_needs_the_prior(outcomes: list[int]) -> None:
    n = len(outcomes)
    own = fit(Fought(np.zeros(n, int), np.ones(n, int), np.array(outcomes), np.arange(n), np.full((n, 2), 5)), 2)
    assert own is not None and own.prior
    assert 0 < abs(own.strengths[0] - own.strengths[1]) < 2 * PRIOR


def test_ties_alone_and_parts_that_never_met() -> None:
    alike = fit(Fought(np.array([0, 1]), np.array([1, 2]), np.zeros(2, int), np.arange(2), np.full((2, 2), 5)), 3)
    assert alike is not None and alike.prior
    assert alike.strengths == pytest.approx(np.zeros(3), abs=1e-9)
    apart = Fought(
        np.array([0, 1, 2, 3]), np.array([1, 0, 3, 2]), np.array([1, 1, 1, 1]), np.arange(4), np.full((4, 2), 5)
    )
    own = fit(apart, 4)
    assert own is not None and own.prior
    own = fit(apart, 5)  # one without a battle
    assert own is not None and own.strengths[4] == pytest.approx(0, abs=1e-9)


def test_length_that_cannot_be_told_apart() -> None:
    battles = drawn([0.5, -0.5], 0.5, 50, seed=0)
    fixed = battles._replace(
        words=np.stack([np.where(battles.first == 0, 10, 20), np.where(battles.second == 0, 10, 20)], 1)
    )
    assert fit(fixed, 2, length=True) is None
    longer = battles._replace(outcome=np.where(battles.words[:, 0] > battles.words[:, 1], 1, -1))
    assert fit(longer, 2, length=True) is None


def test_length_alone_explains_what_it_does() -> None:
    battles = drawn([0.0, 0.0, 0.0], 0.3, 3000, seed=2, length=1.0)
    own = fit(battles, 3, length=True)
    assert own is not None and own.length is not None
    assert abs(own.length - 1) < 4 * own.length_error
    assert (abs(own.strengths) < 4 * own.error).all()
