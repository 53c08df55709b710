"""The world: splits that share no fact, scenes that depend on nothing but (split, seed, index)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import pytest

from captune import storybook
from captune.storybook import world
from captune.storybook.world import (
    HELD_OUT_BACKGROUND,
    HELD_OUT_COLOUR,
    INVERSE,
    KINDS,
    RELATIONS,
    SPLITS,
    Scene,
    Thing,
    relations,
    sample_scene,
)

SEEDS = (0, 7, 91)
SIZES = {0: 200, 7: 100, 91: 300}  # different for each seed: no split may depend on how much is asked for


@pytest.fixture(scope="module")
def scenes() -> dict[str, list[Scene]]:
    """Scenes of every split, over all seeds."""
    return {split: [sample_scene(split, seed, i) for seed in SEEDS for i in range(SIZES[seed])] for split in SPLITS}


def held_out_pairs(scene: Scene) -> int:
    colours = sum(thing.colour == HELD_OUT_COLOUR[thing.kind] for thing in scene.things)
    return colours + sum(scene.background == HELD_OUT_BACKGROUND[thing.kind] for thing in scene.things)


def test_no_two_splits_share_facts(scenes: dict[str, list[Scene]]) -> None:
    keys = {split: {scene.key() for scene in members} for split, members in scenes.items()}
    for a, b in combinations(SPLITS, 2):
        assert not keys[a] & keys[b], f"{a} and {b} share facts"


def test_single_things_are_split_too() -> None:
    """The facts of one thing are few enough for splits to meet by chance, if chance decided."""
    single: dict[str, set[str]] = {}
    for split in ("train", "unlabelled", "val", "test"):
        drawn = (sample_scene(split, seed, i) for seed in (1, 2) for i in range(600))
        single[split] = {scene.key() for scene in drawn if len(scene.things) == 1}
        assert len(single[split]) > 100
    for a, b in combinations(single, 2):
        assert not single[a] & single[b]


def test_every_split_is_owned_once_outside_ood() -> None:
    owned = [bucket for split, buckets in SPLITS.items() if split != "ood" for bucket in buckets]
    assert sorted(owned) == list(range(20))


def test_ood_holds_the_held_out_pairs_and_no_other_split_does(scenes: dict[str, list[Scene]]) -> None:
    for split, members in scenes.items():
        pairs = [held_out_pairs(scene) for scene in members]
        assert all(pairs) if split == "ood" else not any(pairs), split


def test_ood_shows_held_out_pairs_of_every_kind(scenes: dict[str, list[Scene]]) -> None:
    things = [(scene.background, thing) for scene in scenes["ood"] for thing in scene.things]
    assert {t.kind for _, t in things if t.colour == HELD_OUT_COLOUR[t.kind]} == set(KINDS)
    assert {t.kind for place, t in things if place == HELD_OUT_BACKGROUND[t.kind]} == set(KINDS)


def test_every_thing_that_is_not_held_out_is_shown(scenes: dict[str, list[Scene]]) -> None:
    """What ood combines was seen apart: every kind, colour, sub-kind and background is in the training splits."""
    for split in ("pretrain", "clip", "train", "unlabelled"):
        things = [thing for scene in scenes[split] for thing in scene.things]
        assert {thing.kind for thing in things} == set(KINDS)
        assert {thing.colour for thing in things} == set(world.COLOURS)
        assert {(t.kind, t.subkind) for t in things if t.subkind} == {(k, s) for k, own in KINDS.items() for s in own}
        assert {scene.background for scene in scenes[split]} == set(world.BACKGROUNDS)


def test_a_scene_is_well_formed(scenes: dict[str, list[Scene]]) -> None:
    for scene in (scene for members in scenes.values() for scene in members):
        kinds = [thing.kind for thing in scene.things]
        cells = {(thing.x > 0.5, thing.y > 0.5) for thing in scene.things}
        assert 1 <= len(kinds) <= 4 and len(set(kinds)) == len(kinds) == len(cells)
        for thing in scene.things:
            assert (thing.subkind in KINDS[thing.kind]) if KINDS[thing.kind] else thing.subkind is None
            assert 0 < thing.x < 1 and 0 < thing.y < 1 and scene.thing(thing.kind) is thing
        for a, b in combinations(scene.things, 2):
            held = relations(a, b)
            assert 1 <= len(held) <= 2 and set(held) <= set(RELATIONS)
            assert tuple(INVERSE[relation] for relation in held) == relations(b, a)


def test_all_numbers_of_things_occur(scenes: dict[str, list[Scene]]) -> None:
    for split in set(SPLITS) - {"ood"}:
        shares = [sum(len(s.things) == n for s in scenes[split]) / len(scenes[split]) for n in (1, 2, 3, 4)]
        assert min(shares) > 0.05, f"{split}: {shares}"


def test_relations_need_a_margin() -> None:
    here = Thing("cup", None, "red", "big", 0.3, 0.3)
    assert relations(here, Thing("cat", None, "red", "big", 0.7, 0.35)) == ("left of",)
    assert relations(here, Thing("cat", None, "red", "big", 0.35, 0.7)) == ("above",)  # y grows downwards
    assert relations(here, Thing("cat", None, "red", "big", 0.7, 0.7)) == ("left of", "above")
    assert relations(here, Thing("cat", None, "red", "big", 0.45, 0.45)) == ()


def test_key_is_the_facts_and_nothing_else() -> None:
    things = (Thing("cup", None, "red", "big", 0.27, 0.25), Thing("fish", "striped", "blue", "small", 0.73, 0.7))
    scene = Scene("beach", 3, things)
    nudged = (Thing("fish", "striped", "blue", "small", 0.74, 0.72), Thing("cup", None, "red", "big", 0.28, 0.26))
    assert Scene("beach", 99, nudged).key() == scene.key()
    for other in (
        Scene("snow", 3, things),
        Scene("beach", 3, things[:1]),
        Scene("beach", 3, (things[0], Thing("fish", "spotted", "blue", "small", 0.73, 0.7))),
        Scene("beach", 3, (things[0], Thing("fish", "striped", "blue", "big", 0.73, 0.7))),
        Scene("beach", 3, (things[0], Thing("fish", "striped", "blue", "small", 0.27, 0.7))),
        Scene("beach", 3, (Thing("cup", None, "green", "big", 0.27, 0.25), things[1])),
    ):
        assert other.key() != scene.key()


def test_json_round_trip(scenes: dict[str, list[Scene]]) -> None:
    for scene in scenes["test"][:100]:
        assert Scene.from_json(scene.to_json()) == scene
        assert Scene.from_json(json.dumps(json.loads(scene.to_json()))) == scene


def test_scenes_are_frozen() -> None:
    scene = sample_scene("test", 0, 0)
    with pytest.raises(AttributeError):
        scene.background = "city"
    with pytest.raises(AttributeError):
        scene.things[0].colour = "red"


def test_the_same_in_another_process_and_hash_seed() -> None:
    program = (
        "import json; from captune import storybook;"
        "rows = [storybook.record(s, 5, i) for s in ('val', 'ood') for i in range(5)];"
        "print(json.dumps([{**row, 'image': row['image'].tobytes().hex()} for row in rows]))"
    )
    rows = [storybook.record(split, 5, i) for split in ("val", "ood") for i in range(5)]
    here = [{**row, "image": row["image"].tobytes().hex()} for row in rows]
    environment = os.environ | {"PYTHONHASHSEED": "123", "PYTHONPATH": str(Path(storybook.__file__).parents[2])}
    command = [sys.executable, "-c", program]
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert json.loads(answer.stdout) == here


def test_seeds_and_indices_differ() -> None:
    scenes = [sample_scene("test", seed, i) for seed in (0, 1) for i in range(200)]
    assert len({scene.to_json() for scene in scenes}) == 400
    # the number of facts is finite: a few scenes may state the same, hardly any do
    assert len({scene.key() for scene in scenes}) > 360


def test_load_gives_the_same_scenes_for_any_n() -> None:
    few, more = storybook.load("test", n=4, seed=91), storybook.load("test", n=9, seed=91)
    for column in ("image_id", "scene", "references", "alt_text"):
        assert list(few[column]) == list(more[column])[:4]
    assert few[3]["image"].tobytes() == more[3]["image"].tobytes()
    assert few[3]["image"].tobytes() == storybook.load("test", n=9, seed=91)[3]["image"].tobytes()


def test_load_has_the_columns_promised() -> None:
    dataset = storybook.load("val", n=3, seed=5)
    assert len(dataset) == 3
    row = dataset[2]
    assert set(row) == {"image", "image_id", "references", "scene", "alt_text"}
    assert row["image_id"] == "val-5-000002"
    assert row["image"].mode == "RGB" and row["image"].size == (64, 64)
    assert len(row["references"]) == 5 and all(isinstance(text, str) and text for text in row["references"])
    assert isinstance(row["alt_text"], str) and row["alt_text"]
    assert Scene.from_json(row["scene"]) == sample_scene("val", 5, 2)
    assert dataset.select([2])[0]["image_id"] == "val-5-000002"
    assert len(dataset[0:2]["image"]) == 2


def test_load_with_no_images_and_wrong_arguments() -> None:
    assert len(storybook.load("test", n=0)) == 0
    with pytest.raises(ValueError, match="tset.*test"):
        storybook.load("tset")
    with pytest.raises(ValueError, match="n is -1; it must be from 0"):
        storybook.load("test", n=-1)
    with pytest.raises(ValueError, match="nowhere.*test"):
        sample_scene("nowhere", 0, 0)


@pytest.mark.parametrize(("split", "expected"), [("unlabelled", 4000), ("train", 2000), ("test", 500)])
def test_default_sizes(split: str, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = {"image": None, "references": [], "scene": "", "alt_text": ""}
    monkeypatch.setattr(storybook, "record", lambda *key: {**empty, "image_id": str(key)})
    dataset = storybook.load(split)
    assert len(dataset) == expected
    assert dataset[0]["image_id"] == str((split, storybook.DEFAULT_SEED, 0))
