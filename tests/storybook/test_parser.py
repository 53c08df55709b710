"""The parser on captions written by hand, and on the word salad that reinforcement learning produces."""

from __future__ import annotations

import random
import re
import time

import pytest

from captune.storybook.grammar import PLACE, reference
from captune.storybook.noise import alt_text
from captune.storybook.parser import (
    TYPES,
    Fact,
    Span,
    canonical,
    count,
    is_true,
    judge,
    judged,
    parse,
    true_facts,
    truth_sizes,
)
from captune.storybook.world import BACKGROUNDS, COLOURS, KIND_NAMES, KINDS, SIZES, Scene, Thing, sample_scene

FISH = Thing("fish", "striped", "red", "big", 0.27, 0.27)
CUP = Thing("cup", None, "blue", "small", 0.73, 0.27)
TREE = Thing("tree", "pine", "green", "small", 0.27, 0.73)
SCENE = Scene("beach", 3, (FISH, CUP, TREE))

SUBKINDS = sorted({subkind for own in KINDS.values() for subkind in own})
GLUE = "a an the of left right above below over under beneath to on at in by is and with near there my this , ."
VOCABULARY = [
    *KIND_NAMES,
    *COLOURS,
    *SIZES,
    *SUBKINDS,
    *BACKGROUNDS,
    *GLUE.split(),
    "<PERSON>",
    "2011",
    "photo",
    "mountain",
]


def facts(caption: str) -> list[tuple[str, tuple[str, ...]]]:
    return [(fact.type, fact.value) for fact in parse(caption)]


def verdicts(caption: str, scene: Scene = SCENE) -> list[tuple[str, str, bool]]:
    """(words, type, true) of every span."""
    return [(caption[span.start : span.end], span.kind, span.true) for span in judge(caption, scene)]


def test_a_full_caption() -> None:
    caption = "a big red striped fish left of a small blue cup on the beach"
    assert verdicts(caption) == [
        ("big", "size", True),
        ("red", "attribute", True),
        ("striped", "subkind", True),
        ("fish", "object", True),
        ("left of", "relation", True),
        ("small", "size", True),
        ("blue", "attribute", True),
        ("cup", "object", True),
        ("beach", "background", True),
    ]
    assert judge(caption, SCENE)[0] == Span(2, 5, "size", True)


def test_false_facts_are_false() -> None:
    caption = "a small green spotted fish right of a red cat in the snow"
    assert [true for _, _, true in verdicts(caption)] == [False, False, False, True, False, False, False, False]


def test_an_inverted_relation_is_false() -> None:
    assert ("right of", "relation", False) in verdicts("a fish right of a cup")
    assert ("left of", "relation", False) in verdicts("a cup left of a fish")
    assert ("below", "relation", False) in verdicts("a fish below a tree")
    assert ("above", "relation", True) in verdicts("a fish above a tree")
    assert ("under", "relation", True) in verdicts("a tree under a fish")


def test_a_relation_along_the_other_axis_is_false() -> None:
    assert ("above", "relation", False) in verdicts("a fish above a cup")  # side by side
    assert ("above", "relation", True) in verdicts("a cup above a tree")  # a diagonal holds both
    assert ("right of", "relation", True) in verdicts("a cup right of a tree")


@pytest.mark.parametrize(
    "words",
    ["left of", "to the left of", "on the left of", "to left of", "is left of", "is to the left of", ", left of"],
)
def test_ways_to_say_left(words: str) -> None:
    assert ("relation", ("fish", "left of", "cup")) in facts(f"a red fish {words} a blue cup")


def test_ways_to_say_below() -> None:
    for words in ("below", "under", "beneath", "is under", "that is below"):
        assert ("relation", ("tree", "below", "fish")) in facts(f"a tree {words} the fish")


def test_both_directions_state_one_fact() -> None:
    """Said twice, in either direction, a relation counts once."""
    once = count("a fish left of a cup", SCENE)
    assert once["relation"] == (1, 1, 1, 2)
    caption = "a fish left of a cup and the cup right of the fish"
    assert count(caption, SCENE)["relation"] == (1, 1, 1, 2)
    assert count(caption, SCENE)["object"] == (2, 2, 2, 3)
    assert count("a fish above a tree, the tree below the fish", SCENE)["relation"] == (1, 1, 1, 2)


def test_words_that_relate_nothing() -> None:
    for caption in (
        "a fish and a cup",
        "a fish near a cup",
        "left of a cup",
        "a fish left of",
        "left of right of above",
    ):
        assert not [fact for fact in parse(caption) if fact.type == "relation"], caption
    # other words in between: the fish is not said to be left of anything that is named
    assert not [fact for fact in parse("a fish left of my key photo above a cup") if fact.type == "relation"]


def test_repeated_objects_are_hallucinated() -> None:
    caption = "a red fish and a red fish and a red fish"
    assert [true for _, kind, true in verdicts(caption) if kind == "object"] == [True, False, False]
    assert count(caption, SCENE)["object"] == (1, 3, 1, 3)
    assert count(caption, SCENE)["attribute"] == (1, 1, 1, 3)  # the same colour of the same kind, said once


def test_the_thing_already_named_is_no_new_object() -> None:
    assert count("a fish left of a cup and a tree below the fish", SCENE)["object"] == (3, 3, 3, 3)
    assert count("the fish", SCENE)["object"] == (1, 1, 1, 3)  # definite, but not named before


def test_two_colours_of_one_thing_are_two_facts() -> None:
    assert count("a red fish and a blue fish", SCENE)["attribute"] == (1, 2, 1, 3)
    assert count("a red blue green fish", SCENE)["attribute"] == (1, 3, 1, 3)


@pytest.mark.parametrize("caption", ["red", "a red", "red and blue", "a red photo of a fish", "a fish red", "red, red"])
def test_stray_colours_are_false(caption: str) -> None:
    colours = [true for _, kind, true in verdicts(caption) if kind == "attribute"]
    assert colours and not any(colours)


def test_stray_sizes_are_false() -> None:
    assert count("big", SCENE)["size"] == (0, 1, 0, 3)
    assert count("a fish is big and small", SCENE)["size"] == (0, 2, 0, 3)


def test_a_subkind_may_stand_for_its_kind() -> None:
    assert facts("a green pine")[:1] == [("attribute", ("tree", "green"))]
    assert ("object", ("tree",)) in facts("a green pine") and ("subkind", ("tree", "pine")) in facts("a green pine")
    assert [fact for fact in facts("a pine tree") if fact[0] == "object"] == [("object", ("tree",))]
    assert ("object", ("flower",)) in facts("two daisy in the city")


def test_a_subkind_of_another_kind_is_false() -> None:
    assert [true for _, kind, true in verdicts("a striped cup") if kind == "subkind"] == [False]
    assert [true for _, kind, true in verdicts("a palm tree") if kind == "subkind"] == [False]


def test_plurals_case_and_punctuation() -> None:
    assert facts("Two FISHES, near: butterflies!") == [("object", ("fish",)), ("object", ("butterfly",))]
    assert facts("A RED Fish.") == facts("a red fish")
    assert facts("a red, big fish") == facts("a red big fish")


def test_backgrounds() -> None:
    for background, words in PLACE.items():
        assert facts(words) == [("background", (background,))]
    assert facts("on a mountain") == [("background", ("mountains",))]
    assert count("on the beach on the beach", SCENE)["background"] == (1, 1, 1, 1)
    assert count("on the beach in the snow", SCENE)["background"] == (1, 2, 1, 1)


def test_nothing_stated() -> None:
    for caption in ("", " ", "photo of the day", "<PERSON> in 2008", "\n\t", "日本語", "🐟"):
        assert parse(caption) == [] and judge(caption, SCENE) == []
        assert all(counts[:3] == (0, 0, 0) for counts in count(caption, SCENE).values())


def test_alt_text_names_things_that_are_not_there() -> None:
    caption = "a day with <PERSON> in the meadow, look at this photo of my new house in 2011 and my favourite fish"
    assert verdicts(caption) == [("meadow", "background", False), ("house", "object", False), ("fish", "object", True)]


def test_what_there_is_to_state() -> None:
    assert truth_sizes(SCENE) == {"object": 3, "attribute": 3, "size": 3, "subkind": 2, "relation": 2, "background": 1}
    alone = Scene("city", 0, (CUP,))
    assert truth_sizes(alone) == {"object": 1, "attribute": 1, "size": 1, "subkind": 0, "relation": 0, "background": 1}


def test_recall_never_passes_what_there_is() -> None:
    """A caption may state more true relations than a complete one needs; recall stays within 1."""
    caption = "a fish left of a cup and the cup above a tree and the tree below the fish"
    assert count(caption, SCENE)["relation"] == (3, 3, 2, 2)


def test_truth_depends_on_the_scene_alone() -> None:
    fact = Fact("relation", ("fish", "left of", "cup"), 0, 0)
    assert is_true(fact, SCENE)
    assert not is_true(fact, Scene("beach", 3, (FISH,)))
    assert not is_true(Fact("relation", ("fish", "left of", "fish"), 0, 0), SCENE)


# -- word salad


@pytest.fixture(scope="module")
def salad() -> list[str]:
    """10,000 sequences of words from the vocabulary, and 2,000 of any characters among them."""
    rng = random.Random(0)
    texts = [" ".join(rng.choices(VOCABULARY, k=rng.randint(0, 25))) for _ in range(10_000)]
    planes = [(0x20, 0x7E), (0xA0, 0x24F), (0x370, 0x5FF), (0x2000, 0x2BFF), (0x3040, 0x30FF), (0x1F300, 0x1FAFF)]
    for _ in range(2_000):
        pieces = []
        for _ in range(rng.randint(1, 15)):
            low, high = rng.choice(planes)
            pieces.append(
                rng.choice([rng.choice(VOCABULARY), "".join(chr(rng.randint(low, high)) for _ in range(3)), "\n"])
            )
        texts.append(rng.choice(["", " "]).join(pieces))
    # lower-casing some characters changes a text's length: spans must still fit the caption as written
    return [
        *texts,
        "İİİ a red fish İ left of a cup",
        "ẞa red ﬁsh fish",
        "a\u2028red\x00fish\ufeff",
        "fish" * 500,
        "red " * 2000,
    ]


def test_salad_is_read_the_same_every_time(salad: list[str]) -> None:
    for text in salad[::2]:
        assert parse(text) == parse(text)


def test_spans_lie_in_the_caption_and_cover_the_words(salad: list[str]) -> None:
    for text in salad:
        for fact in parse(text):
            assert 0 <= fact.start < fact.end <= len(text), (text, fact)
            words = text[fact.start : fact.end].lower()
            if fact.type == "relation":
                side = fact.value[1].removesuffix(" of")
                synonyms = {"above": ("above", "over"), "below": ("below", "under", "beneath")}.get(side, (side,))
                assert any(word in words for word in synonyms), (text, fact)
            elif fact.type == "object":
                kind = fact.value[0]
                names = {*KINDS[kind], kind, f"{kind}s", "fishes", "butterflies"}
                assert words in names, (text, fact)
            elif fact.type == "background":
                assert words in fact.value[0], (text, fact)  # "mountain" states "mountains"
            else:
                assert words == fact.value[1], (text, fact)


def test_counts_are_consistent_on_salad(salad: list[str]) -> None:
    rng = random.Random(1)
    scenes = [sample_scene("test", 2, i) for i in range(30)]
    for text in salad[::4]:
        scene = rng.choice(scenes)
        spans = judge(text, scene)
        counts = count(text, scene)
        assert set(counts) == set(TYPES)
        for fact_type, (true, stated, recalled, there) in counts.items():
            assert 0 <= recalled <= true <= stated and recalled <= there
            assert stated == sum(span.kind == fact_type for span in spans)
            assert true == sum(span.true for span in spans if span.kind == fact_type)


def test_every_noun_of_the_salad_counts() -> None:
    """Of bare kinds with indefinite articles none is overlooked."""
    rng = random.Random(4)
    for _ in range(500):
        kinds = rng.choices(KIND_NAMES, k=rng.randint(1, 12))
        text = rng.choice((" ", ", ", " and ")).join(f"a {kind}" for kind in kinds)
        assert [value[0] for fact_type, value in facts(text) if fact_type == "object"] == kinds


def test_the_facts_of_a_scene_are_all_that_a_caption_can_truly_state() -> None:
    assert len(true_facts(SCENE)) == 1 + 3 * 3 + 2 + 4  # background, things with colour and size, sub-kinds, relations
    for i in range(200):
        scene = sample_scene("test", 2, i)
        facts = true_facts(scene)
        assert len(set(facts)) == len(facts) and all(is_true(Fact(kind, v, 0, 0), scene) for kind, v in facts)
        stated = [
            (kind, (a.kind, word, b.kind))
            for a in scene.things
            for b in scene.things
            for kind, word in (("relation", r) for r in ("left of", "right of", "above", "below"))
            if a is not b and is_true(Fact(kind, (a.kind, word, b.kind), 0, 0), scene)
        ]
        assert {(kind, canonical(value)) for kind, value in stated} == {fact for fact in facts if fact[0] == "relation"}
        said = judged(reference(scene, random.Random(i)), scene)
        assert all(true and (fact.type, canonical(fact.value)) in facts for fact, true in said)
        sizes = truth_sizes(scene)
        assert all(sum(kind == t for kind, _ in facts) == sizes[t] for t in TYPES if t != "relation")


def test_more_words_never_repair_a_false_fact(salad: list[str]) -> None:
    """Saying more after a full stop of nonsense leaves the false facts of the first half false."""
    for text in salad[:500]:
        false = [span for span in judge(text, SCENE) if not span.true]
        longer = f"{text} photo photo a fish"
        assert [span for span in judge(longer, SCENE) if not span.true][: len(false)] == false


def test_alt_texts_are_read_word_for_word() -> None:
    rng = random.Random(0)
    names = re.compile(rf"\b(?:{'|'.join((*KIND_NAMES, *COLOURS, *SIZES, *BACKGROUNDS))})\b")
    for i in range(1000):
        scene = sample_scene("train", 1, i)
        text = alt_text(scene, rng, sample_scene("train", 1, i + 1000))
        stated = {text[span.start : span.end] for span in judge(text, scene)}
        assert set(names.findall(text)) <= stated, text


def test_long_salad_takes_no_long_time() -> None:
    text = " ".join(random.Random(0).choices(VOCABULARY, k=20_000))
    started = time.process_time()
    parse(text)
    assert time.process_time() - started < 2
