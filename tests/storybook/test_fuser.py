"""Several texts into one by the grammar: slots filled by union or vote, and nothing said that no text says."""

from __future__ import annotations

import random
from collections.abc import Iterable

import pytest

from captune.storybook.fuser import fuse
from captune.storybook.grammar import references
from captune.storybook.noise import alt_text
from captune.storybook.parser import canonical, parse
from captune.storybook.world import sample_scene


def facts(texts: Iterable[str]) -> set[tuple[str, tuple[str, ...]]]:
    return {(fact.type, canonical(fact.value)) for text in texts for fact in parse(text) if fact.value[0]}


TEXTS = (
    "a red fish left of a cup",
    "a big fish and a blue cup in the city",
    "my favourite fish right of a cup on the beach in 2008",
)


@pytest.mark.parametrize(
    ("texts", "union", "vote"),
    [
        (TEXTS, "a big red fish left of a blue cup in the city", "a big red fish and a blue cup"),
        (("a red car", "a blue car"), "a red car", "a car"),
        (("a red car in the snow", "a car in the snow with a cat"), "a red car and a cat in the snow",
         "a red car in the snow"),
        (("untitled 2008", "objects: 2 x tulip, cat; background: beach"), "a tulip flower and a cat on the beach", ""),
        (("untitled 2008",), "", ""),
        (("in the city",), "in the city", "in the city"),
        (("a cat above a cup and a car under the cup", "a cup"), "a cup below a cat and a car below the cup", "a cup"),
        (("a cat a cup a car a ball a kite", "a kite"), "a kite and a cat and a cup and a car", "a kite"),
    ],
)  # fmt: skip
def test_union_and_vote(texts: tuple[str, ...], union: str, vote: str) -> None:
    assert fuse(texts, "union") == union
    assert fuse(texts, "vote") == vote


def test_one_true_caption_keeps_all_its_facts() -> None:
    for index in range(150):
        scene = sample_scene("train", 5, index)
        for text in references(scene, random.Random(index), 2):
            for keep in ("union", "vote"):
                assert facts([fuse([text], keep)]) == facts([text])


def test_says_nothing_that_no_text_says_and_each_kind_once() -> None:
    said = 0
    for index in range(150):
        rng, scene, other = random.Random(index), sample_scene("val", 5, index), sample_scene("val", 6, index)
        texts = [alt_text(scene, rng, other) for _ in range(4)] + references(scene, rng, 1)
        for keep in ("union", "vote"):
            fused = fuse(texts, keep)
            assert facts([fused]) <= facts(texts)
            objects = [fact.value for fact in parse(fused) if fact.type == "object"]
            assert len(objects) == len(set(objects)) <= 4
            said += len(facts([fused]))
    assert said > 1500
