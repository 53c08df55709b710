from __future__ import annotations

import json
import os
import random
import subprocess
import sys

import pytest

from captune.scene_graphs import SceneGraph, load_parser, merged
from captune.scene_graphs.phrases import sentences
from captune.storybook.grammar import references
from captune.storybook.parser import canonical
from captune.storybook.parser import parse as facts
from captune.storybook.world import BACKGROUNDS, sample_scene

CASES = {
    "a small red striped fish left of a big blue house and a white cat above the house": (
        "fish house cat", "fish small, fish red, fish striped, house big, house blue, cat white",
        "fish/left of/house, cat/above/house"),
    "On the beach there is a red ball over a kite.": ("beach ball kite", "ball red", "ball/on/beach, ball/over/kite"),
    "The cat's tail is long and black. Its eyes are not green.": (
        "cat tail eye", "tail long, tail black", "tail/of/cat, eye/of/cat"),
    "A man rides a horse, which is dark brown, without a saddle.": ("man horse", "horse dark brown", "man/ride/horse"),
    "A person wearing a white shirt, black pants, and a backpack is visible in the top left corner of the image.": (
        "person shirt pants backpack", "shirt white, pants black",
        "person/wear/shirt, person/wear/pants, person/wear/backpack"),
    "There are no people. A group of ducks with red beaks is swimming on the left side of the picture.": (
        "duck beak", "beak red", "duck/with/beak"),
    "Two women in red and a boy in a blue and white t-shirt are playing frisbee": (
        "woman boy t-shirt frisbee", "woman red, t-shirt blue, t-shirt white",
        "boy/in/t-shirt, woman/play/frisbee, boy/play/frisbee"),
    "a car parked in front of a brick building next to a fire hydrant": (
        "car, building, fire hydrant", "building brick",
        "car/park in front of/building, building/next to/fire hydrant"),
}  # fmt: skip


@pytest.mark.parametrize("text", CASES)
def test_graphs(text: str) -> None:
    objects, attributes, relations = CASES[text]
    graph = load_parser("grammar").parse([text])[0]
    assert graph.objects == tuple(objects.split(", ") if "," in objects else objects.split())
    assert graph.attributes == tuple(tuple(pair.split(" ", 1)) for pair in attributes.split(", "))
    assert graph.relations == tuple(tuple(triple.split("/")) for triple in relations.split(", "))


def test_storybook_captions_are_read_exactly() -> None:
    """Every fact that the storybook's own grammar states, and no other, from scenes of another split than tuned on."""
    texts = [text for i in range(60) for text in references(sample_scene("ood", 3, i), random.Random(i), 2)]
    for text, graph in zip(texts, load_parser("grammar").parse(texts), strict=True):
        stated = facts(text)
        kinds = {fact.value[0] for fact in stated if fact.type == "object"}
        kind = {thing: thing.split()[-1] for thing in graph.objects} | {"tulip": "flower", "daisy": "flower"}
        places = {*BACKGROUNDS, "mountain"}
        assert {kind[thing] for thing in graph.objects} - places == kinds
        found = {(kind[thing], word) for thing, word in graph.attributes}
        found |= {(kind[thing], word) for thing in graph.objects for word in thing.split()[:-1]}  # "palm tree"
        assert found == {fact.value for fact in stated if fact.type in ("attribute", "size", "subkind")}
        names = {"over": "above", "under": "below"}
        related = {canonical((kind[a], names.get(r, r), kind[b])) for a, r, b in graph.relations if b not in places}
        assert {r for r in related if r[0] not in places} == {
            canonical(fact.value) for fact in stated if fact.type == "relation"
        }


@pytest.mark.parametrize(
    "text",
    ["", " ", ".", "🎈🎈", "'s", "the", "of of of in the", "𝔘𝔫𝔦", "\u2028", "a " * 400, "dog " * 400, "(((", "ß", "İ"],
)
def test_odd_texts_have_graphs(text: str) -> None:
    graph = load_parser("grammar").parse([text])[0]
    assert isinstance(graph, SceneGraph) and all(graph.objects)


def test_lines_are_sentences() -> None:
    assert sentences("A dog.\u2028A cat\rA bird\vA fish. 5.5 ft") == ["A dog", "A cat", "A bird", "A fish", " 5.5 ft"]
    assert sentences("a dog...") == ["a dog"]


def test_same_graph_for_any_hash_seed_and_batch() -> None:
    texts = list(CASES)
    program = (
        "import json, sys; from captune.scene_graphs import load_parser; "
        "print(json.dumps([str(g) for g in load_parser().parse(json.loads(sys.argv[1]))]))"
    )
    results = set()
    for seed in ("0", "7"):
        environment = os.environ | {"PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", program, json.dumps(texts)]
        results.add(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)
    assert len(results) == 1
    one_by_one = [str(load_parser().parse([text])[0]) for text in texts]
    assert json.loads(results.pop()) == one_by_one


def test_merged_says_everything_once() -> None:
    a, b = load_parser().parse(["a red dog on a bed", "a red cat on a bed"])
    both = merged([a, b])
    assert both.objects == ("dog", "bed", "cat") and both.attributes == (("dog", "red"), ("cat", "red"))
    assert both.relations == (("dog", "on", "bed"), ("cat", "on", "bed"))


def test_unknown_parser() -> None:
    with pytest.raises(ValueError, match="unknown scene-graph parser 'stanza'"):
        load_parser("stanza")


@pytest.mark.parametrize(
    ("text", "objects", "relations"),
    [
        ("two brown bears growling at each other on a log", ("bear", "log"), ()),
        ("a bear growling", ("bear",), ()),
        ("a group of people skiing down a slope", ("people", "slope"), (("people", "ski down", "slope"),)),
        ("a man surfing", ("man",), ()),
        ("a person snowboarding down a hill", ("person", "hill"), (("person", "snowboard down", "hill"),)),
        ("a brick building near a road", ("building", "road"), (("building", "near", "road"),)),
        ("an oil painting on a wall", ("oil painting", "wall"), (("oil painting", "on", "wall"),)),
        ("a swimming pool in a parking lot", ("swimming pool", "parking lot"), None),
    ],
)
def test_b13_a_bare_participle_is_no_object(text: str, objects: tuple, relations: tuple | None) -> None:
    graph = load_parser("grammar").parse([text])[0]
    assert graph.objects == objects
    assert relations is None or set(relations) <= set(graph.relations)
