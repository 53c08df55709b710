"""The choice of the next battle: its information, its balance, and what is never shown."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from captune.annotation.pairing import START, Pairing, Shown
from captune.evaluation.bradley_terry import Fought, fit, outcome_probabilities

CAPTIONS = {name: {str(n): f"{name} {n}" for n in range(60)} for name in ("a", "b", "c")}


def run(pairing: Pairing, raters: int = 1, rounds: int = 1000) -> list[Shown]:
    shown: list[Shown] = []
    for _ in range(rounds):
        for rater in map(str, range(raters)):
            choice = pairing.choose(rater, shown, None, Counter(), set())
            if choice is not None:
                shown.append((rater, *choice))
    return shown


def test_no_image_twice_for_a_rater() -> None:
    shown = run(Pairing(CAPTIONS, seed=0), raters=2, rounds=70)
    assert max(Counter(row[:2] for row in shown).values()) == 1
    assert Counter(row[0] for row in shown) == {"0": 60, "1": 60}
    counts = Counter(row[2:] for row in shown)
    assert max(counts.values()) - min(counts.values()) <= 12  # what overlaps is not balanced


def test_with_repeat_every_pair_of_captions_once() -> None:
    pairing = Pairing(CAPTIONS, repeat=True, seed=0)
    shown = run(pairing, rounds=200)
    assert len(shown) == len(set(shown)) == pairing.most == 180


def test_a_share_is_judged_by_several() -> None:
    for share in (0.0, 0.25):
        shown = run(Pairing(CAPTIONS, overlap=share, seed=1), raters=3, rounds=20)
        common = Counter(row[1:] for row in shown)
        assert sum(count > 1 for count in common.values()) == pytest.approx(60 * share * 0.9, abs=4)


def test_equal_captions_and_unusable_images_are_not_shown() -> None:
    captions = {"a": {"1": "same", "2": "x", "3": "x"}, "b": {"1": " same ", "2": "y", "4": "y"}}
    pairing = Pairing(captions, seed=0)
    assert (pairing.equal, pairing.most) == (1, 1)
    assert pairing.choose("r", [], None, Counter(), set()) == ("2", "a", "b")
    assert pairing.choose("r", [], None, Counter(), {"2"}) is None


def test_the_gain_is_that_of_the_determinant() -> None:
    battles = Fought(
        first=np.array([0, 0, 1, 1, 0, 2]),
        second=np.array([1, 1, 2, 2, 2, 0]),
        outcome=np.array([1, -1, 1, 0, 1, 1]),
        image=np.arange(6),
        words=np.full((6, 2), 5),
    )
    own = fit(battles, 3)
    assert own is not None

    def determinant(added: dict[tuple[int, int], float]) -> float:
        information = np.full((3, 3), 1.0)
        information += np.linalg.pinv(own.covariance)
        for (i, j), weight in added.items():
            a = np.eye(3)[i] - np.eye(3)[j]
            information += weight * own.information(i, j) * np.outer(a, a)
        return float(np.log(np.linalg.det(information)))

    pairing = Pairing(CAPTIONS)
    gains = pairing.gains([("a", "b"), ("a", "c")], own, Counter({("b", "c"): 3}))
    before = determinant({(1, 2): 3})
    assert gains["a", "b"] == pytest.approx(determinant({(1, 2): 3, (0, 1): 1}) - before)
    assert gains["a", "c"] == pytest.approx(determinant({(1, 2): 3, (0, 2): 1}) - before)


def test_a_chosen_battle_tells_more_than_a_balanced_one() -> None:
    """Four systems, two of them close: the chosen battles leave less uncertain than as many balanced ones."""
    truth = np.array([2.5, 0.2, 0.0, -2.7])
    captions = {name: {str(n): f"{name} {n}" for n in range(400)} for name in "abcd"}

    def spread(chosen: bool) -> float:
        rng, pairing = np.random.default_rng(0), Pairing(captions, overlap=0, seed=0)
        shown: list[Shown] = []
        outcomes: list[int] = []

        def estimate() -> object:
            pairs = np.array([[pairing.systems.index(s) for s in row[2:]] for row in shown])
            table = Fought(pairs[:, 0], pairs[:, 1], np.array(outcomes), np.arange(len(outcomes)), np.ones_like(pairs))
            return fit(table, 4)

        for _ in range(240):
            choice = pairing.choose("r", shown, estimate() if chosen and shown else None, Counter(), set())
            assert choice is not None
            shown.append(("r", *choice))
            d = truth[pairing.systems.index(choice.a)] - truth[pairing.systems.index(choice.b)]
            outcomes.append(int(rng.choice([1, 0, -1], p=outcome_probabilities(d, 0.3))))
        own = estimate()
        values = np.linalg.eigvalsh(own.covariance)[1:]  # type: ignore[attr-defined]
        assert min(Counter(row[2:] for row in shown).values()) >= START
        return float(np.log(values).sum())

    assert spread(True) < spread(False) - 0.1
