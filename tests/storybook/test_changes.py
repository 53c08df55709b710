from __future__ import annotations

import random

import numpy as np
import pytest

from captune.storybook.changes import (
    CHANGES,
    NEVER,
    NOUN_QUESTIONS,
    SUBKIND_NAMES,
    alternatives,
    changed,
    fact_vector,
    noun_answers,
    scene_vector,
    true_of,
)
from captune.storybook.grammar import reference
from captune.storybook.parser import is_true, parse
from captune.storybook.world import COLOURS, KIND_NAMES, RELATIONS, SIZES, Scene, Thing, sample_scene

FISH = Thing("fish", "striped", "red", "big", 0.27, 0.3)
CUP = Thing("cup", None, "blue", "small", 0.73, 0.27)
SCENE = Scene("beach", 3, (FISH, CUP))
CAPTION = "a big red striped fish left of a small blue cup on the beach"


def truth(caption: str, scene: Scene) -> bool:
    return bool(true_of(fact_vector(caption)[None], scene_vector(scene)[None])[0, 0])


def test_swapping_colours_moves_them_to_each_other() -> None:
    assert (
        changed(CAPTION, "binding", random.Random(0)) == "a big blue striped fish left of a small red cup on the beach"
    )


def test_a_relation_is_inverted() -> None:
    assert (
        changed(CAPTION, "relation", random.Random(0))
        == "a big red striped fish right of a small blue cup on the beach"
    )


def test_another_subkind_is_the_same_kinds() -> None:
    assert (
        changed(CAPTION, "subkind", random.Random(0)) == "a big red spotted fish left of a small blue cup on the beach"
    )


def test_another_kind_is_renamed_everywhere_and_keeps_no_foreign_subkind() -> None:
    caption = "a red striped fish left of a cup and a tall house above the fish"
    for seed in range(20):
        text = changed(caption, "kind", random.Random(seed))
        assert text is not None
        kinds = [fact.value[0] for fact in parse(text) if fact.type == "object"]
        assert len(kinds) == 3
        assert text.count("fish") in (0, 2)
        assert ("striped" in text) == ("fish" in text) or "striped ball" in text


def test_articles_follow_the_new_word() -> None:
    texts = {changed("a red cup", "colour", random.Random(seed)) for seed in range(50)}
    assert "an orange cup" in texts
    assert not any(text and text.startswith("a orange") for text in texts)


@pytest.mark.parametrize("what", ["binding", "subkind", "relation", "size", "background"])
def test_nothing_to_change_is_none(what: str) -> None:
    assert changed("a red cup", what, random.Random(0)) is None


def test_references_are_true_and_their_changes_are_not() -> None:
    rng = random.Random(0)
    made = dict.fromkeys(CHANGES, 0)
    for index in range(60):
        scene = sample_scene("clip", 5, index)
        caption = reference(scene, rng)
        assert truth(caption, scene), caption
        for what in CHANGES:
            text = changed(caption, what, rng)
            if text is not None:
                made[what] += 1
                assert text != caption
                assert not truth(text, scene), text
    assert min(made.values()) > 10


def test_vectors_agree_with_the_parser() -> None:
    rng = random.Random(1)
    scenes = [sample_scene("clip", 6, index) for index in range(30)]
    captions = [text for scene in scenes for text in ("a cup", f"a {scene.things[0].colour} {scene.things[0].kind}")]
    captions += [reference(scene, rng) for scene in scenes]
    facts = np.stack([fact_vector(caption) for caption in captions])
    told = true_of(facts, np.stack([scene_vector(scene) for scene in scenes]))
    for i, caption in enumerate(captions):
        for j, scene in enumerate(scenes):
            assert told[i, j] == all(is_true(fact, scene) for fact in parse(caption)), (caption, scene)
    assert 0 < told.mean() < 0.5


def test_what_states_nothing_or_nonsense_is_true_of_nothing() -> None:
    assert not truth("my favourite photo", SCENE)
    assert not truth("a cup and a cat", SCENE)
    assert truth("a cup", SCENE)


def test_nouns_are_asked_about_the_words_before_them() -> None:
    caption = "a photo of a big red striped fish left of a cup and a small tree over the fish."
    names = [name for name, _ in NOUN_QUESTIONS]
    answers = [
        (caption[: last + 1].split()[-1], dict(zip(names, said, strict=True))) for last, said in noun_answers(caption)
    ]
    assert [noun for noun, _ in answers] == ["fish", "cup", "tree", "fish"]
    fish, cup, tree, again = (said for _, said in answers)
    assert (fish["colour"], fish["size"], fish["subkind"]) == (
        1 + COLOURS.index("red"),
        1 + SIZES.index("big"),
        1 + SUBKIND_NAMES.index("striped"),
    )
    assert (fish["relation to the thing named before"], cup["colour"]) == (0, 0)
    assert cup["relation to the thing named before"] == 1 + RELATIONS.index("left of")
    assert cup["thing named before"] == 1 + KIND_NAMES.index("fish")
    assert tree["relation to the thing named before"] == 0
    assert again["thing named before"] == 1 + KIND_NAMES.index("tree")
    assert all(0 <= said[name] < size for _, said in answers for name, size in NOUN_QUESTIONS)


def test_alternatives_hold_one_truth_at_most() -> None:
    groups = alternatives()
    assert (groups.sum(axis=1) == 1).all()
    for index in range(50):
        true = scene_vector(sample_scene("clip", 8, index)) @ groups
        assert true.max() <= len(KIND_NAMES)
        assert (true[1:] <= 1).all(), "only what is there can hold several times"
    assert groups.sum(axis=0)[0] == len(KIND_NAMES)
    assert groups[NEVER].sum() == 1 and groups[:, groups[NEVER].argmax()].sum() == 1
