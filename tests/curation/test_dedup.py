"""`dedup`: equal and near captions and images, against every pair compared, and what two sets share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from broken_images import encode, photo
from curation_sets import run, write
from hypothesis import given, settings
from hypothesis import strategies as st

from captune.curation import curate, near
from captune.curation.dedup import Dedup, normalised
from captune.data import load_references
from captune.errors import CurationError, UsageError

SETS = [["a dog", "A  dog.", "a cat"], ["a DOG", "a cow"], ["a cat", "a cow", "a cow"]]


@pytest.mark.parametrize(
    ("step", "dropped"),
    [
        ({}, {1: "i0#0", 3: "i0#0", 5: "i0#2", 6: "i1#4", 7: "i1#4"}),
        ({"most": 2}, {3: "i0#0", 7: "i1#4"}),
        ({"within": "image"}, {1: "i0#0", 7: "i2#6"}),
    ],
)
def test_equal_captions(step: dict[str, object], dropped: dict[int, str], tmp_path: Path) -> None:
    report, rows = run(write(tmp_path / "set.jsonl", SETS), tmp_path / "out", {"dedup": step})
    assert {row["number"]: row["other"] for row in rows if row["verdict"] == "drop"} == dropped
    assert report["records"][0]["reasons"] == {"drop: repeats an equal caption": len(dropped)}


def test_the_best_is_kept(tmp_path: Path) -> None:
    table = {"image_id": ["a", "b", "c", "d"], "caption": ["x", "X", "x.", "y"], "sim": [0.1, 0.3, None, 0.2]}
    pq.write_table(pa.table(table), tmp_path / "t.parquet")
    _, rows = run(str(tmp_path / "t.parquet"), tmp_path / "out", {"dedup": {"best": "sim"}})
    assert [row["other"] for row in rows] == ["b#1", None, "b#1", None]
    with pytest.raises(CurationError, match="no column 'score'; it has sim"):
        run(str(tmp_path / "t.parquet"), tmp_path / "out2", {"dedup": {"best": "score"}})


def vectors_near_each_other(seed: int, count: int, groups: int, width: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(groups, width))[rng.integers(groups, size=count)]
    vectors += rng.normal(size=vectors.shape) * rng.choice([0.0, 0.05, 0.4], size=(count, 1))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def brute_force(vectors: np.ndarray, least: float) -> list[int]:
    """The first of each one's group, by a search through all pairs."""
    adjacent = vectors @ vectors.T >= least
    first = [-1] * len(vectors)
    for start in range(len(vectors)):
        waiting = [start] if first[start] < 0 else []
        while waiting:
            at = waiting.pop()
            if first[at] < 0:
                first[at] = start
                waiting += np.flatnonzero(adjacent[at]).tolist()
    return first


@settings(max_examples=25, derandomize=True, database=None, deadline=None)
@given(st.integers(0, 999), st.sampled_from([1, 2, 30, 200]), st.sampled_from([0.7, 0.95]))
def test_near_groups_are_those_of_all_pairs(seed: int, count: int, least: float) -> None:
    vectors = vectors_near_each_other(seed, count, 12, 8)
    block, near._BLOCK = near._BLOCK, 16
    try:
        found = near.groups(count, near.near_pairs(vectors, least, progress=False))
    finally:
        near._BLOCK = block
    assert found.tolist() == brute_force(vectors, least)


def test_cells_find_nearly_all_of_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near, "WHOLE", 100)
    vectors = vectors_near_each_other(1, 4000, 1500, 32)
    first = near.groups(len(vectors), near.near_pairs(vectors, 0.95, progress=False))
    expected = np.array(brute_force(vectors, 0.95))
    assert (first >= expected).all()  # cells never join what is apart
    assert (first == expected).mean() > 0.98
    found, there = near.found_share(vectors, 0.95, lambda i, others: first[others] == first[i])
    assert there > 50 and found / there > 0.95


@given(st.lists(st.tuples(st.integers(0, 14), st.integers(0, 14)), max_size=20))
@settings(max_examples=50, deadline=None, derandomize=True, database=None)
def test_groups_are_connected_components(edges: list[tuple[int, int]]) -> None:
    adjacent = np.eye(15, dtype=np.float32)
    for i, j in edges:
        adjacent[i, j] = adjacent[j, i] = 1
    reach = (np.linalg.matrix_power(adjacent.astype(bool).astype(np.int64), 15) > 0).argmax(axis=1)
    parts = [(np.array([i]), np.array([j])) for i, j in edges]
    assert near.groups(15, parts).tolist() == reach.tolist()
    if edges:
        i, j = (np.array(side) for side in zip(*edges, strict=True))
        assert near.groups(15, [near.connected_edges(i, j)]).tolist() == reach.tolist()


def table_of(path: Path, vectors: np.ndarray, prefix: str = "i") -> str:
    columns = {
        "image_id": [f"{prefix}{n}" for n in range(len(vectors))],
        "caption": [f"{prefix} says {n}" for n in range(len(vectors))],
        "embedding": pa.FixedSizeListArray.from_arrays(pa.array(3 * vectors.ravel()), vectors.shape[1]),
    }
    pq.write_table(pa.table(columns), path, row_group_size=7)
    return str(path)


def test_near_captions_by_a_column_of_vectors(tmp_path: Path) -> None:
    vectors = vectors_near_each_other(3, 60, 10, 8)
    source = table_of(tmp_path / "t.parquet", vectors)
    step = {"dedup": {"near": 0.9, "embeddings": "embedding"}}
    report, rows = run(source, tmp_path / "out", step)
    first = brute_force(vectors, 0.9)
    assert [row["other"] for row in rows] == [None if f == n else f"i{f}#{f}" for n, f in enumerate(first)]
    assert report["out"]["captions"] == len(set(first))
    # after a step, and of chosen rows, the vectors are those of the captions that are left
    steps = [{"filter": {"by": "length", "min": 0, "keep": 0.5}}, step]
    left = curate(f"{source}?n=40&seed=5", tmp_path / "some", steps, progress=False)
    chosen = pq.read_table(tmp_path / "some/decisions/2-dedup.parquet").to_pylist()
    numbers = [int(row["image_id"][1:]) for row in chosen]
    assert len(numbers) == 20
    expected = brute_force(vectors[numbers], 0.9)
    assert [row["verdict"] for row in chosen] == ["keep" if f == n else "drop" for n, f in enumerate(expected)]
    assert left["out"]["captions"] == len(set(expected))


def test_a_vector_of_several_captions_is_none_of_them(tmp_path: Path) -> None:
    lines = [{"image_id": "1", "references": ["a brown dog", "the sea at night"], "vec": [1, 0]},
             {"image_id": "2", "references": ["a red car"], "vec": [0, 1]}]  # fmt: skip
    (tmp_path / "set.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(CurationError, match=r"row 1 of .*set.jsonl has several captions, and vec one vector"):
        run(str(tmp_path / "set.jsonl"), tmp_path / "out", {"dedup": {"near": 0.9, "embeddings": "vec"}})


def test_another_set_is_searched_whole_or_what_is_missed_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(near, "WHOLE", 100)
    vectors = vectors_near_each_other(2, 3000, 900, 24)
    ours, theirs = (
        table_of(tmp_path / "a.parquet", vectors[:2400]),
        table_of(tmp_path / "b.parquet", vectors[2400:], "t"),
    )
    step = {"dedup": {"near": 0.9, "embeddings": "embedding", "against": theirs}}
    expected = set(np.flatnonzero((vectors[:2400] @ vectors[2400:].T >= 0.9).any(axis=1)).tolist())
    report, rows = run(ours, tmp_path / "whole", step)
    assert {row["number"] for row in rows if row["verdict"] == "drop"} == expected
    assert "near pairs found, of those of a sample" not in report["records"][0]["notes"]
    monkeypatch.setattr(near, "ACROSS", 1)
    monkeypatch.setattr(near, "_PROBES", 1)
    report, rows = run(ours, tmp_path / "cells", step)
    dropped = {row["number"] for row in rows if row["verdict"] == "drop"}
    assert dropped < expected  # some are missed
    found, there = report["records"][0]["notes"]["near pairs found, of those of a sample"]
    assert 0 < found < there


def test_what_two_sets_share_is_named(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    train, test = (rng.normal(size=(n, 16)) for n in (30, 10))
    train, test = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (train, test))
    train[7] = train[6]  # repeated inside the set: stays
    test[2], test[5] = train[20] + 0.01, train[7] + 0.01
    ours = table_of(tmp_path / "train.parquet", train.astype(np.float32))
    theirs = table_of(tmp_path / "test.parquet", test.astype(np.float32), "t")
    step = {"dedup": {"near": 0.95, "embeddings": "embedding", "against": theirs}}
    report, rows = run(ours, tmp_path / "out", step)
    assert [row["number"] for row in rows if row["verdict"] == "drop"] == [6, 7, 20]
    shared = report["records"][0]["notes"]["shared with the other set"]
    assert shared["near captions"] == 3 and shared["equal captions"] == 0
    assert shared["of them"] == ["i6#6 = t5#5", "i7#7 = t5#5", "i20#20 = t2#2"]
    equal = write(tmp_path / "equal.jsonl", [["nothing"], ["I SAYS 3."]])
    report, rows = run(ours, tmp_path / "equal", {"dedup": {"against": equal}})
    assert [row["number"] for row in rows if row["verdict"] == "drop"] == [3]
    assert report["records"][0]["notes"]["shared with the other set"]["of them"] == ["i3#3 = i1#1"]


@pytest.mark.parametrize("near", [{"near": 0.9, "embeddings": "embedding"}, {"near": 0.9, "by": "storybook-clip"}])
def test_a_set_that_is_in_the_other_one_leaves_nothing(near: dict[str, Any], tmp_path: Path) -> None:
    source = table_of(tmp_path / "own.parquet", np.eye(4, dtype=np.float32))
    with pytest.raises(CurationError, match="leaves no caption"):
        run(source, tmp_path / "out", {"dedup": {**near, "against": source}})


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, seed in enumerate((0, 1, 0, 2, 1)):
        (folder / f"i{number}.png").write_bytes(encode(photo(30, 20, seed), "PNG"))
    (folder / "i3.png").write_bytes(b"no image")
    return folder


def test_equal_images(photos: Path, tmp_path: Path) -> None:
    source = write(tmp_path / "set.jsonl", [["a"], ["b", "c"], ["d", "e"], ["f"], ["g"]])
    _, rows = run(f"{source}?images={photos}", tmp_path / "out", {"dedup": {"of": "images"}})
    assert [row["verdict"] for row in rows] == ["keep", "keep", "keep", "drop", "drop", "drop", "drop"]
    assert [row["other"] for row in rows] == [None, None, None, "i0#0", "i0#0", None, "i1#1"]
    assert rows[5]["reason"] == "the image cannot be opened"
    other = write(tmp_path / "other.jsonl", [["x"]])
    step = {"dedup": {"of": "images", "against": f"{other}?images={photos}"}}
    _, rows = run(f"{source}?images={photos}", tmp_path / "out2", step)
    assert [row["number"] for row in rows if row["verdict"] == "drop"] == [0, 3, 4, 5]


def test_captions_of_equal_images_are_merged(photos: Path, tmp_path: Path) -> None:
    source = write(tmp_path / "set.jsonl", [["a"], ["b", "c"], ["d", "e"], ["f"], ["g"]])
    step = {"dedup": {"of": "images", "merge": True}}
    report, rows = run(f"{source}?images={photos}", tmp_path / "out", step)
    assert [row["verdict"] for row in rows] == ["keep", "keep", "keep", "move", "move", "drop", "move"]
    assert [row["moved_to"] for row in rows] == [None, None, None, "i0", "i0", None, "i1"]
    assert report["records"][0]["reasons"]["move: repeats an equal image"] == 3
    made = load_references(str(tmp_path / "out/captions.jsonl"))
    assert made == {"i0": ["a", "d", "e"], "i1": ["b", "c", "g"]}


def test_normalised() -> None:
    assert normalised(" A\u00a0Dog \n runs. ") == normalised("a dog runs") == "a dog runs"
    assert normalised("cafe\u0301") == normalised("CAF\u00c9")
    assert normalised("a dog, runs") != normalised("a dog runs")


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"near": 0.9}, "near needs vectors"),
        ({"by": "x"}, "are for near"),
        ({"near": 0.9, "by": "x", "embeddings": "y"}, "keep one"),
        ({"within": "image", "of": "images"}, "within image"),
        ({"against": "x", "most": 2}, "against drops all"),
        ({"merge": True}, "take of images"),
    ],
)
def test_refused(given: dict[str, object], match: str) -> None:
    with pytest.raises(UsageError, match=match):
        Dedup(**given)  # type: ignore[arg-type]


def test_images_of_a_set_without_captions_are_found(tmp_path: Path) -> None:
    (tmp_path / "ours").mkdir()
    (tmp_path / "test").mkdir()
    for number in range(3):
        data = encode(photo(seed=number), "PNG")
        (tmp_path / f"ours/{number}.png").write_bytes(data)
        (tmp_path / f"ours/{number}.txt").write_text(f"number {number}")
        if number:
            (tmp_path / f"test/x{number}.png").write_bytes(data)
    (tmp_path / "test/x1.txt").write_text("a caption of one of them")
    step = {"dedup": {"of": "images", "against": str(tmp_path / "test")}}
    with pytest.raises(
        CurationError, match="1 of the 2 images of .* have no caption and so no vector in the column 'v'"
    ):
        run(str(tmp_path / "ours"), tmp_path / "v", {"dedup": {**step["dedup"], "near": 0.9, "embeddings": "v"}})
    report, rows = run(str(tmp_path / "ours"), tmp_path / "out", step)
    assert [row["image_id"] for row in rows if row["verdict"] == "drop"] == ["1.png", "2.png"]
    assert report["records"][0]["notes"]["shared with the other set"]["of them"] == ["1.png = x1.png", "2.png = x2.png"]
