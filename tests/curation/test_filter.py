"""`filter`: each rule by hand, ties, captions that cannot be scored, and references without the caption itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny_text_encoders
from broken_images import encode, photo
from curation_sets import run, write

from captune.curation.filter import Filter
from captune.errors import CurationError, MissingColumn, SourceError, UsageError
from captune.scorers import load_scorer
from captune.utils.skipped import counting, sentences

SETS = [["one", "one two three"], ["one two"], ["one two three four", "one two three", "two three four"]]


@pytest.fixture
def source(tmp_path: Path) -> str:
    return write(tmp_path / "set.jsonl", SETS)


@pytest.mark.parametrize(
    ("rule", "kept"),
    [
        ({"min": 3}, [1, 3, 4, 5]),
        ({"max": 2}, [0, 2]),
        ({"min": 2, "max": 3}, [1, 2, 4, 5]),
        ({"keep": 0.5}, [1, 3, 4]),  # of four equal lengths the first
        ({"keep": 0.01}, [3]),
        ({"keep": 1}, [0, 1, 2, 3, 4, 5]),
        ({"best": 1}, [1, 2, 3]),
        ({"best": 2}, [0, 1, 2, 3, 4]),
        ({"zscore": -1}, [1, 2, 3, 4, 5]),  # mean 2.67, deviation .94
        ({"zscore": 0}, [1, 3, 4, 5]),
        ({"best": 1, "min": 3}, [1, 3]),
    ],
)
def test_rules(rule: dict[str, Any], kept: list[int], source: str, tmp_path: Path) -> None:
    _, rows = run(source, tmp_path / "out", {"filter": {"by": "length", **rule}})
    assert [row["number"] for row in rows if row["verdict"] == "keep"] == kept
    assert [row["score"] for row in rows] == [1, 3, 2, 4, 3, 3]


@pytest.mark.parametrize("by", ["rouge", "cider", "0.5*rouge + cider"])
def test_a_caption_is_no_reference_of_itself(by: str, source: str, tmp_path: Path) -> None:
    report, rows = run(source, tmp_path / "out", {"filter": {"by": by, "min": -1}})
    scorer = load_scorer(by)
    for part, _ in getattr(scorer, "parts", [(scorer, 1)]):
        if part.needs_fit:
            part.fit(SETS)
    numbers = iter(range(6))
    for texts in SETS:
        for place, text in enumerate(texts):
            row = rows[next(numbers)]
            others = texts[:place] + texts[place + 1 :]
            if not others:
                assert row["verdict"] == "drop" and row["score"] is None
                assert row["reason"] == f"no score of {by}: the image has no other caption to compare with"
                continue
            expected = scorer.per_caption(scorer.rows([text], references=[others]))[0]
            assert row["score"] == pytest.approx(expected, abs=1e-12)
    assert report["records"][0]["drop"] == 1


def test_equal_scores_are_not_below_their_mean(tmp_path: Path) -> None:
    rows = [{"image_id": f"i{n}", "caption": f"says {n}", "own": 0.1} for n in range(3)]  # whose mean is above .1
    (tmp_path / "set.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    _, found = run(str(tmp_path / "set.jsonl"), tmp_path / "out", {"filter": {"by": "column:own", "zscore": 0}})
    assert [row["verdict"] for row in found] == ["keep"] * 3


def test_captions_of_an_image_are_compared_with_each_other(source: str, tmp_path: Path) -> None:
    _, rows = run(source, tmp_path / "out", {"filter": {"by": "consensus", "best": 1}})
    texts, ids = [text for texts in SETS for text in texts], [f"i{n}" for n, texts in enumerate(SETS) for _ in texts]
    several = [place for place, image_id in enumerate(ids) if image_id != "i1"]
    scorer = load_scorer("consensus")
    made = scorer.rows([texts[i] for i in several], image_id=[ids[i] for i in several])
    assert [rows[i]["score"] for i in several] == pytest.approx(scorer.per_caption(made).tolist())
    assert rows[2]["score"] is None and "no other caption" in rows[2]["reason"]


def test_unscored_captions_are_kept_on_request_and_named(source: str, tmp_path: Path) -> None:
    report, rows = run(source, tmp_path / "out", {"filter": {"by": "rouge", "keep": 0.2, "unscored": "keep"}})
    assert rows[2]["verdict"] == "keep" and "no other caption" in rows[2]["reason"]
    assert report["records"][0]["keep"] == 2  # it, and one of the five that have a score


def test_no_references_at_all(tmp_path: Path) -> None:
    with pytest.raises(CurationError, match="no caption of .* has a score of 'rouge': the image has no other caption"):
        run(write(tmp_path / "set.jsonl", [["a"], ["b"]]), tmp_path / "out", {"filter": {"by": "rouge", "keep": 0.5}})


def test_no_images(source: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="are not beside it"):
        run(source, tmp_path / "out", {"filter": {"by": f"{scorer_file(tmp_path)}:Bright", "keep": 0.5}})


def scorer_file(folder: Path) -> Path:
    """A scorer of images that needs no model."""
    file = folder / "bright.py"
    file.write_text(
        "import numpy as np\n"
        "from captune.scorers import Scorer\n"
        "class Bright(Scorer):\n"
        "    name = 'bright'\n"
        "    required_columns = ('image',)\n"
        "    def rows(self, captions, *, image, **columns):\n"
        "        return np.array([[image[i].width if 'nan' not in c else np.nan] for i, c in enumerate(captions)])\n"
    )
    return file


def test_images_that_cannot_be_opened_and_scores_that_are_no_numbers(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(3):
        (photos / f"i{number}.jpg").write_bytes(encode(photo(30 + number, 20, number), "JPEG"))
    (photos / "i1.jpg").write_bytes(b"no image")
    source = write(tmp_path / "set.jsonl", [["a", "a nan"], ["b", "c"], ["d"]])
    step = {"filter": {"by": f"{scorer_file(tmp_path)}:Bright", "min": 0}}
    _, rows = run(f"{source}?images={photos}", tmp_path / "out", step)
    assert [row["verdict"] for row in rows] == ["keep", "drop", "drop", "drop", "keep"]
    assert [row["score"] for row in rows] == [30, None, None, None, 32]
    assert rows[1]["reason"].endswith("the score is no number")
    assert rows[2]["reason"].endswith("the image cannot be opened")


def test_captions_that_the_scorer_cuts_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sentence_transformers")
    monkeypatch.setattr("captune.curation.scoring.TEXTS", 2)  # a part for each image
    folder = tiny_text_encoders.sentences(tmp_path / "model")
    source = write(tmp_path / "set.jsonl", [["a cat in " * 20, "a cat"], ["a dog", "a dog by " * 20], ["one", "two"]])
    for by in (f"sbert:{folder}", f"sbert:{folder} - 0.01*length"):
        with counting() as counts:
            run(source, tmp_path / "out", {"filter": {"by": by, "min": -9}}, overwrite=True)
        (said,) = sentences(counts)
        assert said.startswith(f"captions are longer than {by} reads: their score is of their beginnings: 2 captions")


def test_a_column_that_the_source_lacks(source: str, tmp_path: Path) -> None:
    with pytest.raises(CurationError, match="has no column 'sim' of numbers; it has no column"):
        run(source, tmp_path / "out", {"filter": {"by": "column:sim", "keep": 0.5}})
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(3):
        (photos / f"i{number}.jpg").write_bytes(encode(photo(30, 20, number), "JPEG"))
    with pytest.raises(MissingColumn, match="needs scene"):
        run(f"{source}?images={photos}", tmp_path / "out2", {"filter": {"by": "storybook", "keep": 0.5}})


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({}, "no rule"),
        ({"min": 3, "max": 2}, "leaves nothing"),
        ({"keep": 0.5, "by": "repetition"}, "write '-repetition'"),
        ({"keep": 0.5, "by": "clpi"}, "did you mean 'clip'"),
    ],
)
def test_refused(given: dict[str, Any], match: str) -> None:
    with pytest.raises(UsageError, match=match):
        Filter(**{"by": "length", **given})


def test_many_captions_are_scored_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("captune.curation.scoring.TEXTS", 3)
    rng = np.random.default_rng(0)
    sets = [["w " * int(n) for n in rng.integers(1, 9, size=int(size))] for size in rng.integers(1, 6, size=30)]
    _, rows = run(write(tmp_path / "set.jsonl", sets), tmp_path / "out", {"filter": {"by": "length", "keep": 0.25}})
    lengths = [len(text.split()) for texts in sets for text in texts]
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    expected = sorted(order[: -(-len(lengths) // 4)])
    assert [row["number"] for row in rows if row["verdict"] == "keep"] == expected


@pytest.mark.parametrize(
    ("by", "source"),
    [
        ("self_retrieval:?k=1", "storybook:train?n=30&caption=alt_text"),
        ("self_bleu", "storybook:train?n=12"),
        ("consensus:cider", "storybook:train?n=12"),
    ],
)
def test_a_score_does_not_depend_on_where_a_part_ends(
    by: str, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = [row["score"] for row in run(source, tmp_path / "whole", {"filter": {"by": by, "min": -9}})[1]]
    for size in ("TEXTS", "IMAGES"):
        monkeypatch.setattr(f"captune.curation.scoring.{size}", 5)
    parts = [row["score"] for row in run(source, tmp_path / "parts", {"filter": {"by": by, "min": -9}})[1]]
    assert parts == whole and len(set(whole)) > 1


@pytest.mark.parametrize("name", ["", "references", "image_id", "text", "verdict"])
def test_a_column_is_not_called_as_the_set_calls_its_own(name: str) -> None:
    with pytest.raises(UsageError, match="column cannot be called"):
        Filter(by="length", min=1, column=name)


@pytest.mark.parametrize("rule", [{"keep": 0.5}, {"zscore": 0.0}, {"min": 1}])
def test_a_column_without_a_number(rule: dict[str, Any], tmp_path: Path) -> None:
    table = pa.table({"image_id": ["a", "b"], "caption": ["x", "y"], "q": pa.array([None, None], pa.float64())})
    pq.write_table(table, tmp_path / "set.parquet")
    with pytest.raises(CurationError, match="'q' of .* holds no number for any caption"):
        run(str(tmp_path / "set.parquet"), tmp_path / "out", {"filter": {"by": "column:q", **rule}})


@pytest.mark.parametrize("name", ["parquet", "webdataset"])
def test_an_image_that_cannot_be_opened_and_a_format_with_images(name: str, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for one in ("a", "b"):
        (tmp_path / f"photos/{one}.png").write_bytes(encode(photo(), "PNG"))
        (tmp_path / f"photos/{one}.txt").write_text(f"a {one}")
    (tmp_path / "photos/b.png").write_bytes(b"")
    with pytest.raises(CurationError, match=r"b.png.*run again with --format jsonl"):
        run(str(tmp_path / "photos"), tmp_path / "out", {"filter": {"by": "length", "min": 1}}, format=name)
    run(str(tmp_path / "photos"), tmp_path / "out", {"filter": {"by": "length", "min": 1}}, format="jsonl")
