"""`consensus`: the medoid, the most frequent and the one with the most lift, against their formulas."""

from __future__ import annotations

import itertools
import json
import math
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from curation_sets import run, write

from captune.curation import curate
from captune.curation.consensus import Consensus
from captune.errors import CurationError, UsageError
from captune.scorers import load_scorer

TEXTS = [
    ["a red ball on sand", "a red ball", "two dogs in a park", "a ball on sand"],
    ["a cat", "A cat.", "a grey cat on a sofa asleep", "a grey cat sits on a sofa"],
    ["alone"],
    ["a photo of a photo", "a photo of a boat", "a photo", "a boat with a photo of sails"],
]


def medoid(texts: list[str], by: str) -> tuple[int, list[float]]:
    scorer = load_scorer(by)
    if scorer.needs_fit:
        scorer.fit(TEXTS)
    alike = [[float(scorer.per_caption(scorer.rows([a], references=[[b]]))[0]) for b in texts] for a in texts]
    means = [sum(row[j] for j in range(len(texts)) if j != i) / (len(texts) - 1) for i, row in enumerate(alike)]
    return max(range(len(texts)), key=lambda i: (round(means[i], 6), -i)), means


@pytest.mark.parametrize("by", ["rouge", "cider"])
def test_the_medoid(by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("captune.curation.consensus._PART", 4)  # frequencies are of the set, not of a part
    report, rows = run(write(tmp_path / "set.jsonl", TEXTS), tmp_path / "out", {"consensus": {"by": by}})
    for image, texts in enumerate(TEXTS):
        mine = [row for row in rows if row["image_id"] == f"i{image}"]
        if len(texts) == 1:
            assert (mine[0]["verdict"], mine[0]["reason"], mine[0]["score"]) == ("keep", "the only one", None)
            continue
        best, means = medoid(texts, by)
        assert [row["verdict"] for row in mine] == ["keep" if i == best else "drop" for i in range(len(texts))]
        assert [row["score"] for row in mine] == pytest.approx(means)
        assert {row["other"] for row in mine if row["verdict"] == "drop"} == {f"i{image}#{mine[best]['number']}"}
    assert report["out"]["captions"] == 4
    assert report["records"][0]["notes"]["things by their number of captions"] == {"1": 1, "4": 3}


def test_the_most_frequent(tmp_path: Path) -> None:
    texts = [*TEXTS[:3], ["x y", "a b c", "a b d", "a b"]]  # of the last, none is there twice: agreement decides
    _, rows = run(write(tmp_path / "set.jsonl", texts), tmp_path / "out", {"consensus": {"choose": "frequency"}})
    kept = {row["image_id"]: row["before"] for row in rows if row["verdict"] == "keep"}
    assert kept["i1"] == "a cat"
    assert [row["score"] for row in rows if row["image_id"] == "i1"] == [0.5, 0.5, 0.25, 0.25]
    assert kept["i3"] == texts[3][medoid(texts[3], "rouge")[0]]


def test_a_thing_with_one_caption_has_a_value(tmp_path: Path) -> None:
    source = write(tmp_path / "set.jsonl", [["a cat"], ["a dog", "a dog", "dogs"]])
    steps = [{"consensus": {"choose": "frequency"}}, {"filter": {"by": "column:agreement", "min": 0.9}}]
    curate(source, tmp_path / "out", steps, progress=False)
    rows = pq.read_table(tmp_path / "out/decisions/2-filter.parquet").to_pylist()
    assert [(row["before"], row["verdict"], row["score"]) for row in rows] == [
        ("a cat", "keep", 1.0), ("a dog", "drop", pytest.approx(2 / 3)),
    ]  # fmt: skip


def test_lift(tmp_path: Path) -> None:
    """What is said of every image counts little, though all captions of this one say it."""
    _, rows = run(write(tmp_path / "set.jsonl", TEXTS), tmp_path / "out", {"consensus": {"choose": "lift"}})
    words = [[set(re.findall(r"\w+", text.lower())) for text in texts] for texts in TEXTS]
    every = list(itertools.chain.from_iterable(words))
    expected = []
    for own in words:
        for said in own:
            terms = []
            for word in said:
                here = sum(word in one for one in own) / len(own)
                terms.append(here * math.log(here / (sum(word in one for one in every) / len(every))))
            expected.append(np.mean(terms))
    assert [row["score"] for row in rows] == pytest.approx(expected)
    for image, texts in enumerate(TEXTS):
        mine = [row for row in rows if row["image_id"] == f"i{image}"]
        best = max(range(len(texts)), key=lambda i: round(mine[i]["score"], 6))
        assert mine[best]["verdict"] == "keep"


@pytest.mark.parametrize("by_column", [False, True])
def test_views_of_one_thing(by_column: bool, tmp_path: Path) -> None:
    """Each view has the chosen caption afterwards: its own where it says it, else in place of its first."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    ids = ["cup_view1", "bed_view1", "cup_view2", "cup_view3"]
    texts = [["a white cup", "a mug"], ["a bed"], ["a dog", "a white cup on a table"], ["A white cup."]]
    if by_column:
        thing = [[5, 5], [3], [5, 5], [5]]
        pq.write_table(pa.table({"image_id": ids, "references": texts, "thing": thing}), tmp_path / "set.parquet")
        source, views = str(tmp_path / "set.parquet"), "column:thing"
    else:
        source, views = write(tmp_path / "set.jsonl", texts), r"(.+)_view\d"
        lines = (tmp_path / "set.jsonl").read_text()
        for number, image_id in enumerate(ids):
            lines = lines.replace(f'"i{number}"', f'"{image_id}"')
        (tmp_path / "set.jsonl").write_text(lines)
    _, rows = run(source, tmp_path / "out", {"consensus": {"views": views}})
    assert [(row["verdict"], row["after"], row["other"]) for row in rows] == [
        ("keep", None, None),
        ("drop", None, "cup_view1#0"),
        ("keep", None, None),
        ("change", ["a white cup"], "cup_view1#0"),
        ("drop", None, "cup_view1#0"),
        ("keep", None, None),
    ]
    lines = [json.loads(line) for line in (tmp_path / "out/captions.jsonl").read_text().splitlines()]
    assert {line["image_id"]: line["references"] for line in lines} == {
        "cup_view1": ["a white cup"], "bed_view1": ["a bed"], "cup_view2": ["a white cup"],
        "cup_view3": ["A white cup."],
    }  # fmt: skip
    agreement = {line["image_id"]: line["agreement"][0] for line in lines}
    assert agreement["cup_view1"] == agreement["cup_view2"] == agreement["cup_view3"] > 0.5
    assert agreement["bed_view1"] is None


def test_wrong_settings(tmp_path: Path) -> None:
    for settings, message in (
        ({"by": "rouge + cider"}, "not by a sum"),
        ({"views": "("}, "no regular expression"),
        ({"views": "view"}, "no group in brackets"),
    ):
        with pytest.raises(UsageError, match=message):
            Consensus(**settings)
    source = write(tmp_path / "set.jsonl", TEXTS)
    with pytest.raises(CurationError, match=r"not in the ids of 4 images, such as 'i0'"):
        run(source, tmp_path / "out", {"consensus": {"views": "(.+)_view"}})
    with pytest.raises(CurationError, match="no column 'thing' of numbers"):
        run(source, tmp_path / "out2", {"consensus": {"views": "column:thing"}})
