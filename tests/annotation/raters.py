"""Raters of the arena who use its page in a browser."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from captune.evaluation.bradley_terry import outcome_probabilities


def enter(page: Any, rater: str) -> None:
    """Give a name and wait for the first battle."""
    page.fill("#rater", rater)
    page.keyboard.press("Enter")
    page.wait_for_selector("#battle:not([hidden])")


def press(page: Any, key: str) -> None:
    """Press a key and wait for the next battle, or for the end."""
    before = page.evaluate("document.body.dataset.battle")
    page.keyboard.press(key)
    page.wait_for_function(
        "before => !document.body.ariaBusy && (document.body.dataset.battle !== before || "
        "!document.getElementById('end').hidden)",
        arg=before,
    )


def planted_key(page: Any, strengths: Mapping[str, float], tie: float, chance: random.Random) -> str:
    """Return the key that planted strengths make a rater press; the first word of a caption says whose it is."""
    left, right = page.evaluate("['left', 'right'].map(side => document.getElementById(side).textContent)")
    difference = strengths[left.split()[0]] - strengths[right.split()[0]]
    return chance.choices(("ArrowLeft", "t", "ArrowRight"), outcome_probabilities(difference, tie))[0]
