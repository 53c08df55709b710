"""Questions about scenes and the exact reader, over many scenes."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from captune.data.questions import MultipleChoice
from captune.data.schemes import SOURCES
from captune.errors import ScorerError
from captune.storybook.grammar import PLACE, reference
from captune.storybook.parser import is_true, parse, true_facts
from captune.storybook.questions import questions
from captune.storybook.reader import CaptionReader
from captune.storybook.world import BACKGROUNDS, COLOURS, KIND_NAMES, SIZES, Scene, Thing, sample_scene

SCENES = [sample_scene("test", 3, i) for i in range(60)] + [sample_scene("ood", 3, i) for i in range(15)]
READER = CaptionReader()


def whole(scene: Scene) -> str:
    """A caption that states every fact of a scene."""
    things = [
        " ".join(word for word in ("a", t.size, t.colour, t.subkind, t.kind) if word) + " ." for t in scene.things
    ]
    related = [f"the {a} {r} the {b} ." for kind, (a, r, b) in
               ((k, v) for k, v in true_facts(scene) if k == "relation")]  # fmt: skip
    return " ".join([*things, *related, PLACE[scene.background]])


def answers(caption: str, asked: list[MultipleChoice]) -> list[bool | None]:
    """Right, wrong, or None where the caption does not say."""
    read = [READER.read(caption, q) for q in asked]
    return [None if index is None else index == q.answer for index, q in zip(read, asked, strict=True)]


@pytest.mark.parametrize("hard", [True, False])
def test_every_question_is_sound(hard: bool) -> None:
    for scene in SCENES:
        asked = questions(scene, hard=hard)
        assert asked == questions(scene, hard=hard) == questions(Scene.from_json(scene.to_json()), hard=hard)
        for q in asked:
            assert len(set(q.options)) == len(q.options) >= 2 and 0 <= q.answer < len(q.options), q
            assert q.category in SOURCES["storybook"].question_categories
    assert any(questions(scene) != questions(scene, seed=1) for scene in SCENES)


def test_the_keys_are_spread_over_the_places() -> None:
    places = Counter(
        q.answer for scene in SCENES for q in questions(scene) if q.category in ("colour", "sub-kind", "background")
    )
    assert min(places[i] for i in range(4)) > 0.15 * sum(places.values())


def test_a_caption_that_states_everything_answers_every_question_right() -> None:
    for scene in SCENES:
        asked = questions(scene)
        assert [READER.can_answer(q) for q in asked].count(False) == 1  # is there what is not there
        for q, right in zip(asked, answers(whole(scene), asked), strict=True):
            assert right is (True if READER.can_answer(q) else None), (scene, whole(scene), q)


def test_true_captions_answer_nothing_wrong_but_the_count() -> None:
    stated = total = 0
    for i, scene in enumerate(SCENES):
        caption = reference(scene, random.Random(i))
        asked = questions(scene)
        said = answers(caption, asked)
        assert False not in said, (caption, asked)
        stated, total = stated + sum(a is True for a in said), total + len(said)
    assert 0.7 < stated / total < 0.95  # sizes, backgrounds and most relations are left out now and then


def test_an_empty_caption_and_one_of_other_words_answer_nothing() -> None:
    for scene in SCENES:
        for caption in ("", "a nice view", "the best caption ever"):
            assert set(answers(caption, questions(scene))) == {None}


def test_a_wrong_colour_is_wrong_also_where_it_is_no_option() -> None:
    for scene in SCENES:
        for q in questions(scene):
            if q.category == "colour":
                kind = q.slot[1]
                for colour in COLOURS:
                    right = colour == scene.thing(kind).colour
                    assert answers(f"a {colour} {kind}", [q]) == [right]


@pytest.mark.parametrize(
    ("category", "values"),
    [("colour", COLOURS), ("size", SIZES), ("background", BACKGROUNDS), ("presence", KIND_NAMES)],
)
def test_listing_every_value_wins_nothing(category: str, values: tuple[str, ...]) -> None:
    for scene in SCENES[:60]:
        for q in questions(scene):
            if q.category == category and q.options != ("yes", "no"):
                kind = q.slot[1] if len(q.slot) > 1 else ""
                for text in (f"a {' '.join(values)} {kind}", " and ".join(f"a {value} {kind}" for value in values)):
                    assert READER.read(text, q) not in (q.answer,), (text, q)


def test_one_relation_of_two_is_asked_about_by_axis() -> None:
    a, b = Thing("car", None, "red", "big", 0.27, 0.27), Thing("cup", None, "blue", "big", 0.73, 0.73)
    (q,) = [q for q in questions(Scene("beach", 0, (a, b))) if q.category == "relation"]
    assert q.options in (("left of", "right of"), ("right of", "left of"))
    assert answers("a car left of a cup", [q]) == answers("a cup right of a car", [q]) == [True]
    assert answers("a cup left of a car", [q]) == [False]
    assert answers("a car above a cup", [q]) == [None]  # of the other axis
    assert answers("a car left of a cup . the car right of the cup", [q]) == [False]
    below = Thing("cup", None, "blue", "big", 0.27, 0.73)
    (q,) = [q for q in questions(Scene("beach", 0, (a, below))) if q.category == "relation"]
    assert set(q.options) == {"left of", "right of", "above", "below"}
    assert answers("a car over a cup", [q]) == [True] and answers("a car left of a cup", [q]) == [False]


def test_hard_options_are_of_the_scene() -> None:
    hard = easy = 0
    for scene in SCENES:
        for mode in (True, False):
            for q in questions(scene, hard=mode):
                if q.category == "colour":
                    others = {t.colour for t in scene.things if t.kind != q.slot[1]} - {q.options[q.answer]}
                    if mode:
                        assert others <= set(q.options)
                        hard += len(others)
                    else:
                        easy += len(others & set(q.options))
    assert hard > 50 and easy == 0


def test_what_the_reader_reads_is_what_the_parser_holds_true() -> None:
    """Right exactly when the facts about it are stated and true, on captions of other images too."""
    for i, scene in enumerate(SCENES):
        caption = reference(SCENES[(i + 1) % len(SCENES)], random.Random(i))
        facts = parse(caption)
        for q, right in zip(questions(scene), answers(caption, questions(scene)), strict=True):
            if q.category in ("colour", "size", "sub-kind"):
                kind = {"colour": "attribute", "sub-kind": "subkind"}.get(q.category, q.category)
                said = [is_true(f, scene) for f in facts if f.type == kind and f.value[0] == q.slot[1]]
                assert right is (all(said) if said else None)


def test_questions_of_a_file_have_no_exact_answer() -> None:
    with pytest.raises(ScorerError, match="What is it"):
        READER.read("a cup", MultipleChoice("What is it?", ("a", "b"), 0))
