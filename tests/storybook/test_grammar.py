"""The reference captions: true, complete, varied; and the parser reads back exactly what was written."""

from __future__ import annotations

import random
import re
from collections import Counter

import pytest

from captune.storybook.grammar import PLACE, article, noun_phrase, reference, references
from captune.storybook.parser import judge, parse
from captune.storybook.world import (
    BACKGROUNDS,
    COLOURS,
    KIND_NAMES,
    SIZES,
    SPLITS,
    Scene,
    Thing,
    random_for,
    relations,
    sample_scene,
)

SCENES = 1000
SUBKINDS = {"tall", "wide", "pine", "palm", "sailing", "rowing", "striped", "spotted", "crested", "longtailed"}
SUBKINDS |= {"tulip", "daisy", "starred", "diamond", "box"}


@pytest.fixture(scope="module")
def written() -> list[tuple[Scene, list[str]]]:
    """1000 scenes over all splits, five captions each."""
    result = []
    for i in range(SCENES):
        split = list(SPLITS)[i % len(SPLITS)]
        scene = sample_scene(split, 3, i)
        result.append((scene, references(scene, random_for(split, 3, i, "references"))))
    return result


def all_facts(scene: Scene) -> set[tuple[str, tuple[str, ...]]]:
    """Everything that is true of a scene, both directions of every relation."""
    facts: set[tuple[str, tuple[str, ...]]] = {("background", (scene.background,))}
    for a in scene.things:
        facts |= {("object", (a.kind,)), ("attribute", (a.kind, a.colour)), ("size", (a.kind, a.size))}
        facts |= {("subkind", (a.kind, a.subkind))} if a.subkind else set()
        facts |= {("relation", (a.kind, r, b.kind)) for b in scene.things if b is not a for r in relations(a, b)}
    return facts


def test_every_caption_parses_back_to_its_scene(written: list[tuple[Scene, list[str]]]) -> None:
    for scene, captions in written:
        truth = all_facts(scene)
        for caption in captions:
            facts = [(fact.type, fact.value) for fact in parse(caption)]
            assert set(facts) <= truth, f"{caption!r} states {set(facts) - truth}, which is not in {scene.key()}"
            assert all(span.true for span in judge(caption, scene)), caption
            objects = Counter(value[0] for fact_type, value in facts if fact_type == "object")
            assert objects == Counter(thing.kind for thing in scene.things), caption
            colours = {value for fact_type, value in facts if fact_type == "attribute"}
            assert colours == {(thing.kind, thing.colour) for thing in scene.things}, caption
            # of four things the two pairs are described, each with its relation
            assert sum(fact_type == "relation" for fact_type, _ in facts) == (0, 1, 2, 2)[len(scene.things) - 1], (
                caption
            )


def test_the_parser_overlooks_no_word(written: list[tuple[Scene, list[str]]]) -> None:
    """Counted on the words alone, without the parser: what is written is what is read, fact by fact."""
    for _, captions in written[:300]:
        for caption in captions:
            words, types = Counter(caption.split()), Counter(fact.type for fact in parse(caption))
            assert types["attribute"] == sum(words[colour] for colour in COLOURS), caption
            assert types["size"] == sum(words[size] for size in SIZES), caption
            assert types["subkind"] == sum(words[subkind] for subkind in SUBKINDS), caption
            assert types["background"] == sum(words[background] for background in BACKGROUNDS), caption
            again = len(re.findall(rf"\bthe (?:{'|'.join(KIND_NAMES)})\b", caption))  # "... left of the fish"
            assert types["object"] == sum(words[kind] for kind in KIND_NAMES) - again, caption


def test_what_is_left_out_varies_as_stated(written: list[tuple[Scene, list[str]]]) -> None:
    stated: Counter[str] = Counter()
    there: Counter[str] = Counter()
    for scene, captions in written:
        for caption in captions:
            stated.update(fact.type for fact in parse(caption))
            there.update({"size": len(scene.things), "background": 1})
            there["subkind"] += sum(thing.subkind is not None for thing in scene.things)
    assert stated["size"] / there["size"] == pytest.approx(0.75, abs=0.02)
    assert stated["subkind"] / there["subkind"] == pytest.approx(0.9, abs=0.02)
    assert stated["background"] / there["background"] == pytest.approx(0.86, abs=0.02)


def test_wording_varies(written: list[tuple[Scene, list[str]]]) -> None:
    distinct = [len(set(captions)) for _, captions in written]
    assert sum(distinct) / len(distinct) > 3
    openings = Counter(captions[0].split()[0] for _, captions in written)
    assert {"a", "there", "in", "on", "by"} <= set(openings)
    text = " ".join(" ".join(captions) for _, captions in written)
    for words in ("above", "over", "below", "under", "left of", "right of"):
        assert f" {words} " in text


def test_both_relations_of_a_diagonal_are_used() -> None:
    scene = Scene(
        "city", 0, (Thing("cup", None, "red", "big", 0.27, 0.27), Thing("cat", None, "blue", "small", 0.73, 0.73))
    )
    said = Counter(
        fact.value[1]
        for seed in range(300)
        for fact in parse(reference(scene, random.Random(seed)))
        if len(fact.value) == 3
    )
    assert set(said) == {"left of", "above", "right of", "below"}
    assert said["left of"] > said["right of"] and said["left of"] > said["above"]


def test_articles_and_phrases(written: list[tuple[Scene, list[str]]]) -> None:
    assert article("orange umbrella") == "an orange umbrella" and article("red cup") == "a red cup"
    assert noun_phrase("fish", size="big", colour="red", subkind="striped") == "a big red striped fish"
    assert noun_phrase("umbrella", size=None, colour=None, subkind=None) == "an umbrella"
    for _, captions in written:
        for caption in captions:
            assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", caption), caption
            assert caption == " ".join(caption.split()) and caption.islower(), caption


def test_every_place_has_words_of_its_own() -> None:
    assert set(PLACE) == set(BACKGROUNDS) and len(set(PLACE.values())) == len(BACKGROUNDS)
    for background, words in PLACE.items():
        assert [(fact.type, fact.value) for fact in parse(words)] == [("background", (background,))]


def test_the_same_lot_gives_the_same_captions() -> None:
    scene = sample_scene("test", 0, 1)
    assert references(scene, random.Random(4)) == references(scene, random.Random(4))
    assert len(references(scene, random.Random(4), n=7)) == 7
