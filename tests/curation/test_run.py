"""Every caption is accounted for, a killed run ends with the same bytes, and what comes out is a source again."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from broken_images import encode, photo
from file_events import in_child as in_child_at
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from captune.cli.main import main
from captune.curation import curate
from captune.curation.base import Captions, Verdicts, Work
from captune.curation.reading import NO_NUMBERS
from captune.curation.registry import OPERATIONS
from captune.curation.run import OVERWRITTEN
from captune.data import load_images, load_references, read_captions
from captune.errors import CurationError, UsageError
from captune.utils.skipped import counting

TEXTS = [
    ["a red ball", "a blue ball on sand", "A red  ball."],
    ["a dog. it runs fast today. it is very happy"],
    [],
    ["a cat", "a dog"],
]


def write(path: Path, texts: list[list[str]], **columns: Any) -> str:
    path.write_text("".join(json.dumps({"image_id": f"i{n}", "references": t}) + "\n" for n, t in enumerate(texts)))
    return str(path)


def run(source: str, output: Path, *steps: Any, **options: Any) -> dict[str, Any]:
    return curate(source, output, list(steps), progress=False, **options)


def rows(folder: Path, name: str) -> list[dict[str, Any]]:
    return list(pq.read_table(folder / "decisions" / f"{name}.parquet").to_pylist())


@pytest.fixture
def source(tmp_path: Path) -> str:
    return write(tmp_path / "set.jsonl", TEXTS)


# -- every caption is accounted for ------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Arbitrary:
    """Do to each caption what is said."""

    what: tuple[int, ...] = ()
    example = ""

    def decide(self, captions: Captions, work: Work) -> Verdicts:
        verdicts = Verdicts(len(captions))
        for index in range(len(captions)):
            said = self.what[index % len(self.what)]
            if said == 1:
                verdicts.drop(index, "unwanted")
            elif said == 2:
                verdicts.change(index, f"changed {captions.texts(index, index + 1)[0]}", "better")
            elif said == 3:
                verdicts.move(index, (int(captions.rows[index]) + 1) % len(captions.image_ids), "fits there")
            elif said > 3:
                verdicts.split(index, [f"part {n}" for n in range(said - 2)], "parts")
        verdicts.columns["place"] = np.arange(len(captions), dtype=np.float64)
        return verdicts


texts = st.lists(st.lists(st.sampled_from(["a", "b c", "d"]), max_size=3), min_size=1, max_size=6).filter(any)
orders = st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=5), min_size=1, max_size=3)


@settings(max_examples=25, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))
@given(texts, orders)
def test_nothing_is_lost(tmp_path: Path, given: list[list[str]], orders: list[list[int]]) -> None:
    folder = tmp_path / "out"
    shutil.rmtree(folder, ignore_errors=True)
    source = write(tmp_path / "any.jsonl", given)
    OPERATIONS.targets["arbitrary"] = Arbitrary
    try:
        report = run(source, folder, *[("arbitrary", Arbitrary(what=tuple(what))) for what in orders])
    except CurationError as error:
        assert "leaves no caption" in str(error)
        return
    finally:
        del OPERATIONS.targets["arbitrary"]
    # followed by hand, from the decisions alone
    held = {}
    number = 0
    for n, captions in enumerate(given):
        for text in captions:
            held[number] = (f"i{n}", text)
            number += 1
    assert report["in"]["captions"] == number
    for record in report["records"]:
        decided = rows(folder, record["step"])
        assert Counter(row["number"] for row in decided) == Counter(list(held))  # each caption once
        assert record["captions in"] == len(held) == sum(record[v] for v in ("keep", "drop", "change", "move", "split"))
        assert sum(record["reasons"].values()) == len(held) - record["keep"]
        for row in decided:
            assert held.pop(row["number"]) == (row["image_id"], row["before"])
            assert (row["reason"] is None) == (row["verdict"] == "keep")
            if row["verdict"] == "keep":
                held[row["number"]] = (row["image_id"], row["before"])
            elif row["verdict"] == "change":
                held[row["number"]] = (row["image_id"], row["after"][0])
            elif row["verdict"] == "move":
                held[row["number"]] = (row["moved_to"], row["before"])
            for text in row["after"] if row["verdict"] == "split" else ():
                held[number] = (row["image_id"], text)
                number += 1
        assert record["captions out"] == len(held)
        assert record["images out"] == len({image for image, _ in held.values()})
    left = load_references(str(folder / "captions.jsonl"))
    assert Counter((i, text) for i, said in left.items() for text in said) == Counter(held.values())


def test_an_operation_that_decides_too_little_is_a_bug(source: str, tmp_path: Path) -> None:
    class Half(Arbitrary):
        def decide(self, captions: Captions, work: Work) -> Verdicts:
            return Verdicts(len(captions) - 1) if len(captions) > 1 else Verdicts(1)

    OPERATIONS.targets["half"] = Half
    try:
        with pytest.raises(ValueError):
            run(source, tmp_path / "out", ("half", Half()))
    finally:
        del OPERATIONS.targets["half"]


def test_scores_of_a_former_text_do_not_stay(source: str, tmp_path: Path) -> None:
    run(source, tmp_path / "out", {"filter": {"by": "length", "min": 0}}, {"split": {}})
    lines = [json.loads(line) for line in (tmp_path / "out/captions.jsonl").read_text().splitlines()]
    split = next(line for line in lines if line["image_id"] == "i1")
    assert split["references"] == ["a dog. it runs fast today.", "it is very happy"] and split["score"] == [None, None]
    assert lines[0]["score"] == [3, 5, 3]


# -- kills -------------------------------------------------------------------------------------------------------------


in_child = partial(in_child_at, events=("replace", "fsync", "unlink", "mkdir", "rmdir"))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_any_file_event(source: str, tmp_path: Path) -> None:
    steps = [{"filter": {"by": "length", "min": 2}}, {"split": {}}, {"dedup": {}}]

    def job(folder: Path) -> None:
        run(source, folder, *steps)

    job(tmp_path / "expected")
    expected = contents(tmp_path / "expected")
    assert set(expected) == {
        "captions.jsonl", "curation.json", "decisions/1-filter.parquet", "decisions/2-split.parquet",
        "decisions/3-dedup.parquet",
    }  # fmt: skip
    corrected = [*steps[:2], {"dedup": {"most": 2}}]
    run(source, tmp_path / "corrected", *corrected)
    ended, events = in_child(lambda: job(tmp_path / "counted"))
    assert not ended and events > 20
    for event in range(1, events + 1):
        folder = tmp_path / f"killed-{event}"
        ended, _ = in_child(lambda folder=folder: job(folder), event)  # type: ignore[misc]
        assert ended
        shutil.copytree(folder, tmp_path / "other")
        try:
            run(source, tmp_path / "other", *corrected)
        except UsageError:  # it was done
            assert contents(tmp_path / "other").items() >= expected.items(), event
        else:
            assert contents(tmp_path / "other") == contents(tmp_path / "corrected"), event
        job(folder)
        assert contents(folder) == expected, event
        shutil.rmtree(folder)
        shutil.rmtree(tmp_path / "other")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.parametrize("format", ["parquet", "jsonl"])
def test_any_file_event_of_an_overwriting_run(source: str, tmp_path: Path, format: str) -> None:
    def job(folder: Path) -> None:
        run(source, folder, {"filter": {"by": "length", "min": 3}}, overwrite=True)

    def former(folder: Path) -> None:
        run(source, folder, {"dedup": {}}, {"split": {}}, format=format)

    former(tmp_path / "start")
    job(tmp_path / "expected")
    expected = contents(tmp_path / "expected")
    shutil.copytree(tmp_path / "start", tmp_path / "counted")
    _, events = in_child(lambda: job(tmp_path / "counted"))
    assert contents(tmp_path / "counted") == expected
    for event in range(1, events + 1):
        folder = tmp_path / f"killed-{event}"
        shutil.copytree(tmp_path / "start", folder)
        ended, _ = in_child(lambda folder=folder: job(folder), event)  # type: ignore[misc]
        assert ended
        shutil.copytree(folder, tmp_path / "other")
        try:
            former(tmp_path / "other")
        except UsageError:  # the new one is being written, or is there
            run(source, tmp_path / "other", {"filter": {"by": "length", "min": 3}})
            assert contents(tmp_path / "other") == expected, event
        else:
            assert contents(tmp_path / "other") == contents(tmp_path / "start"), event
        job(folder)
        assert contents(folder) == expected, event
        shutil.rmtree(folder)
        shutil.rmtree(tmp_path / "other")


def test_scores_that_are_made_are_not_made_again(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("captune.curation.scoring.TEXTS", 2)
    calls = tmp_path / "calls"
    (tmp_path / "counting.py").write_text(
        f"def score(completions, **columns):\n"
        f"    with open({str(calls)!r}, 'a') as file:\n"
        f"        file.writelines(text + '\\n' for text in completions)\n"
        f"    if 'a cat' in completions and not __import__('os').path.exists({str(tmp_path / 'go')!r}):\n"
        f"        raise RuntimeError('killed')\n"
        f"    return [float(len(text)) for text in completions]\n"
    )
    step = {"filter": {"by": f"{tmp_path / 'counting.py'}:score", "keep": 0.5}}
    with pytest.raises(RuntimeError, match="killed"):
        run(source, tmp_path / "out", step)
    (tmp_path / "go").touch()
    report = run(source, tmp_path / "out", step)
    assert Counter(calls.read_text().splitlines())["a red ball"] == 1
    assert Counter(calls.read_text().splitlines())["a cat"] == 2
    assert report["out"]["captions"] == 3


# -- resuming and refusing ---------------------------------------------------------------------------------------------


def test_other_settings_are_refused(source: str, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    first = run(source, folder, {"dedup": {}})
    before = contents(folder)
    assert run(source, folder, {"dedup": {}}) == first
    with pytest.raises(UsageError, match=r"other settings \(steps\).*--overwrite"):
        run(source, folder, {"dedup": {"most": 2}})
    with pytest.raises(UsageError, match=r"other settings \(limit\)"):
        run(source, folder, {"dedup": {}}, limit=2)
    with pytest.raises(UsageError, match=r"was written as captions.jsonl: pass --overwrite"):
        run(source, folder, {"dedup": {}}, format="parquet")
    assert contents(folder) == before
    assert run(source, folder, {"dedup": {"most": 2}}, overwrite=True)["out"]["captions"] == 6
    (folder / "captions.jsonl").unlink()
    with pytest.raises(UsageError, match=r"had captions.jsonl, which is not there any more"):
        run(source, folder, {"dedup": {"most": 2}})


def test_data_that_changed_are_refused(source: str, tmp_path: Path) -> None:
    other = write(tmp_path / "test.jsonl", [["a dog"]])
    steps = [{"dedup": {"against": other}}]
    run(source, tmp_path / "done", *steps)
    with pytest.raises(CurationError, match="leaves no caption"):
        run(source, tmp_path / "begun", *steps, {"filter": {"by": "length", "min": 99}})
    for name in ("done", "begun"):
        write(Path(other), [["a cat", "a dog"]])
        with pytest.raises(UsageError, match=r"other data \(.*test.jsonl: changed, or not there\)"):
            run(source, tmp_path / name, *steps)
    write(Path(source), [["a new one"]])
    with pytest.raises(UsageError, match=r"set.jsonl, .*test.jsonl: changed"):
        run(source, tmp_path / "done", *steps)


def test_a_folder_that_changed_is_refused(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for name in ("a", "b"):
        (tmp_path / f"photos/{name}.png").write_bytes(encode(photo(), "PNG"))
        (tmp_path / f"photos/{name}.txt").write_text(f"a {name}")
    run(str(tmp_path / "photos"), tmp_path / "out", {"dedup": {}})
    run(str(tmp_path / "photos"), tmp_path / "out", {"dedup": {}})
    (tmp_path / "photos/b.txt").write_text("something else")
    with pytest.raises(UsageError, match="photos: changed"):
        run(str(tmp_path / "photos"), tmp_path / "out", {"dedup": {}})


def test_shards_that_came_or_went_are_noticed(tmp_path: Path) -> None:
    for number in range(3):
        table = pa.table({"image_id": [f"i{number}"], "caption": [f"number {number}"]})
        pq.write_table(table, tmp_path / f"p-{number}.parquet")
    (tmp_path / "p-2.parquet").rename(tmp_path / "later")
    run(str(tmp_path / "p-*.parquet"), tmp_path / "out", {"dedup": {}})
    with pytest.raises(CurationError):
        run(str(tmp_path / "p-*.parquet"), tmp_path / "begun", {"filter": {"by": "length", "min": 99}})
    (tmp_path / "later").rename(tmp_path / "p-2.parquet")
    for name, step in (("out", {"dedup": {}}), ("begun", {"filter": {"by": "length", "min": 99}})):
        with pytest.raises(UsageError, match=r"p-\*.parquet: changed, or not there"):
            run(str(tmp_path / "p-*.parquet"), tmp_path / name, step)


@pytest.mark.parametrize("name", ["photos", "my%20photos"])
def test_images_that_changed_are_noticed(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path(name.replace("%20", " "))
    folder.mkdir()
    (folder / "a.png").write_bytes(encode(photo(), "PNG"))
    Path("a.jsonl").write_text('{"image": "a.png", "references": ["a dog"]}\n')
    run(f"a.jsonl?images={name}", tmp_path / "out", {"dedup": {}})
    run(f"a.jsonl?images={name}", tmp_path / "out", {"dedup": {}})
    (folder / "a.png").write_bytes(encode(photo(seed=1), "PNG"))
    with pytest.raises(UsageError, match=r"photos: changed"):
        run(f"a.jsonl?images={name}", tmp_path / "out", {"dedup": {}})


def test_images_beside_a_caption_file_that_changed_are_noticed(tmp_path: Path) -> None:
    for number, seed in enumerate((0, 1, 2)):
        (tmp_path / f"{number}.png").write_bytes(encode(photo(seed=seed), "PNG"))
    rows = ({"image": f"{number}.png", "references": [f"number {number}"]} for number in range(3))
    (tmp_path / "set.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    step = {"dedup": {"of": "images"}}
    assert run(str(tmp_path / "set.jsonl"), tmp_path / "out", step)["out"]["images"] == 3
    (tmp_path / "beside.png").write_bytes(b"another")  # is no image of the set
    run(str(tmp_path / "set.jsonl"), tmp_path / "out", step)
    shutil.copy(tmp_path / "0.png", tmp_path / "1.png")
    with pytest.raises(UsageError, match=r"set.jsonl, its images: changed"):
        run(str(tmp_path / "set.jsonl"), tmp_path / "out", step)


def test_what_a_scorer_names_is_noticed_and_a_word_is_no_file(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("judge.py").write_text("def short(captions, **columns):\n    return [-len(c) for c in captions]\n")
    step = {"filter": {"by": "judge.py:short - length", "keep": 0.5}}
    run(source, Path("length"), step)
    run(source, Path("length"), step)
    Path("judge.py").write_text("def short(captions, **columns):\n    return [float(len(c)) for c in captions]\n")
    with pytest.raises(UsageError, match=r"judge.py: changed"):
        run(source, Path("length"), step)
    prompted = {"rewrite": {"model": "storybook", "prompt": "cats / dogs"}}
    assert run("storybook:train?n=2", Path("clip"), prompted)["state"] == {}


def test_an_output_in_its_source_or_around_it_is_refused(source: str, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.png").write_bytes(encode(photo(), "PNG"))
    (tmp_path / "photos/a.txt").write_text("a dog")
    with pytest.raises(UsageError, match="lie in each other"):
        run(str(tmp_path / "photos"), tmp_path / "photos/curated", {"dedup": {}})
    run(source, tmp_path / "out", {"dedup": {}})
    before = contents(tmp_path / "out")
    with pytest.raises(UsageError, match="lie in each other"):
        run(str(tmp_path / "out/captions.jsonl"), tmp_path / "out", {"dedup": {}}, overwrite=True)
    with pytest.raises(UsageError, match="lie in each other"):
        run(str(tmp_path / "out"), tmp_path / "out", {"dedup": {}}, overwrite=True)
    assert contents(tmp_path / "out") == before


def test_what_is_overwritten_stays_until_the_new_set_is_written(source: str, tmp_path: Path) -> None:
    run(source, tmp_path / "out", {"dedup": {}})
    before = contents(tmp_path / "out")
    with pytest.raises(CurationError, match="typo"):
        run(source, tmp_path / "out", {"filter": {"by": "column:typo", "min": 1}}, overwrite=True)
    assert {name: data for name, data in contents(tmp_path / "out").items() if not name.startswith(".work")} == before
    run(source, tmp_path / "out", {"dedup": {}})
    assert contents(tmp_path / "out") == before


def test_corrected_steps_keep_those_before_them(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = [{"filter": {"by": "length", "min": 2}}, {"dedup": {"best": "scroe"}}]
    right = [wrong[0], {"dedup": {"best": "score"}}]
    with pytest.raises(CurationError, match="scroe"):
        run(source, tmp_path / "out", *wrong)
    called: list[str] = []
    for name in ("filter", "dedup"):
        kind = OPERATIONS[name]
        decide = kind.decide

        def counted(self: Any, *args: Any, decide: Any = decide, name: str = name) -> Any:
            called.append(name)
            return decide(self, *args)

        monkeypatch.setattr(kind, "decide", counted)
    run(source, tmp_path / "out", *right)
    assert called == ["dedup"]
    run(source, tmp_path / "new", *right)
    assert contents(tmp_path / "out") == contents(tmp_path / "new")


def test_captions_left_out_of_the_source_are_counted(tmp_path: Path) -> None:
    source = write(tmp_path / "set.jsonl", [["a dog", "", "nan"], ["a cat"]])
    for _ in range(2):  # done, too
        with counting() as counts:
            found = run(source, tmp_path / "out", {"dedup": {}})
        assert sum(sum(items.values()) for items in counts.values()) == 2
        assert sum(next(iter(found["in"]["left out"].values())).values()) == 2
    table = pa.table({"image_id": ["x", "y"], "references": [["a dog", " "], ["None", "a cat"]]})
    pq.write_table(table, tmp_path / "set.parquet")
    found = run(str(tmp_path / "set.parquet"), tmp_path / "of_table", {"dedup": {}})
    assert sum(next(iter(found["in"]["left out"].values())).values()) == 2


def test_columns_of_a_table(tmp_path: Path) -> None:
    """A number for each caption, or one for all of an image; lists of another length are no such column."""
    table = pa.table(
        {
            "image_id": ["x", "y", "z"],
            "references": [["a dog runs", "a cat sits"], ["one bird"], ["a", "b"]],
            "own": [[1.0, 2.0], None, [3.0, 4.0]],
            "one": [7, 8, 9],
            "shifted": [[1.0], [2.0, 3.0], [4.0, 5.0]],
        }
    )
    pq.write_table(table, tmp_path / "set.parquet")
    run(str(tmp_path / "set.parquet"), tmp_path / "out", {"dedup": {}})
    lines = [json.loads(line) for line in (tmp_path / "out/captions.jsonl").read_text().splitlines()]
    assert [line["own"] for line in lines] == [[1, 2], [None], [3, 4]]
    assert [line["one"] for line in lines] == [[7, 7], [8], [9, 9]]
    assert not any("shifted" in line for line in lines)


def test_columns_that_the_set_will_not_have_are_named(tmp_path: Path) -> None:
    row = {"image_id": "x", "references": ["a dog runs"], "objects": ["dog"], "license": "by", "score": 9, "age": 3}
    (tmp_path / "set.jsonl").write_text(json.dumps(row) + "\n")
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "set.parquet")
    for name in ("set.jsonl", "set.parquet"):
        with counting() as counts:
            run(str(tmp_path / name), tmp_path / f"of_{name}", {"filter": {"by": "length", "min": 1}})
        assert {reason: set(items) for reason, items in counts.items()} == {
            NO_NUMBERS: {"license", "objects"}, OVERWRITTEN: {"score (step 1, filter)"}
        }  # fmt: skip
        line = json.loads((tmp_path / f"of_{name}" / "captions.jsonl").read_text())
        assert line == {"image_id": "x", "references": ["a dog runs"], "score": [3], "age": [3]}


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_whole_numbers_that_a_float_does_not_hold_are_left_out(tmp_path: Path, kind: str) -> None:
    lines = [
        {"image_id": f"{n}", "caption": f"a dog {n}", "hash": 2**53 + 1 + n, "row": n, "seen": n} for n in range(2)
    ]
    if kind == "jsonl":
        (tmp_path / "set.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    else:
        pq.write_table(pa.Table.from_pylist(lines), tmp_path / "set.parquet")
    with counting() as left_out:
        run(str(tmp_path / f"set.{kind}"), tmp_path / "out", {"dedup": {}})
    made = json.loads((tmp_path / "out/captions.jsonl").read_text().splitlines()[1])
    assert made["seen"] == [1] and "hash" not in made
    assert any("up to 2^53" in reason for reason in left_out)


def test_formats_of_one_caption_say_what_they_leave_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = write(tmp_path / "set.jsonl", [["a dog"], ["a cat sits"]])
    for name, file in (("csv", "captions.csv"), ("tsv", "captions.tsv"), ("coco", "captions.json")):
        found = run(source, tmp_path / name, {"filter": {"by": "length", "min": 1}}, format=name)
        assert found["out"] == {"images": 2, "captions": 2, "file": file, "left out": ["score"]}
        assert f"{file} has no place for score" in caplog.text
        assert list(read_captions(tmp_path / name / file).values()) == ["a dog", "a cat sits"]


@pytest.mark.parametrize("name", ["jsonl", "csv", "tsv", "coco", "metadata"])
def test_the_source_that_is_printed_is_one(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "photos").mkdir()
    for one in ("a", "b"):
        (tmp_path / f"photos/{one}.png").write_bytes(encode(photo(), "PNG"))
        (tmp_path / f"photos/{one}.txt").write_text(f"a {one}")
    arguments = ["--by", "length", "--min", "1", "--output", str(tmp_path / "out"), "--format", name]
    assert main(["curate", "filter", str(tmp_path / "photos"), *arguments]) == 0
    printed = capsys.readouterr().out.strip().splitlines()[-1].removeprefix("set: ")
    again = load_images(printed)
    assert again["references"] == [["a a"], ["a b"]]
    assert again[0]["image"].size == photo().size


def test_a_folder_with_something_else_is_refused(source: str, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.tex").touch()
    for overwrite in (False, True):
        with pytest.raises(UsageError, match="thesis.tex"):
            run(source, tmp_path / "out", {"dedup": {}}, overwrite=overwrite)


def test_nothing_to_curate(tmp_path: Path) -> None:
    with pytest.raises(CurationError, match="no image of .* has a caption"):
        run(write(tmp_path / "empty.jsonl", [[], []]), tmp_path / "out", {"dedup": {}})


# -- what comes out ----------------------------------------------------------------------------------------------------


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(4):
        (folder / f"i{number}.jpg").write_bytes(encode(photo(30 + number, 20, number), "JPEG"))
    return folder


def test_images_that_are_files_are_named(source: str, photos: Path, tmp_path: Path) -> None:
    report = run(f"{source}?images={photos}", tmp_path / "out", {"dedup": {}})
    assert report["out"] == {
        "images": 3, "captions": 5, "file": "captions.jsonl", "image folder": str(photos)
    }  # fmt: skip
    again = load_images(f"{tmp_path / 'out/captions.jsonl'}?images={photos}")
    assert [row["image_id"] for row in again] == ["i0", "i1", "i3"]
    assert [row["image"].width for row in again] == [30, 31, 33]
    assert report["in"]["images without a caption"] == 1


def test_parquet_holds_the_images_and_is_curated_again(source: str, photos: Path, tmp_path: Path) -> None:
    run(f"{source}?images={photos}", tmp_path / "out", {"filter": {"by": "length", "min": 0}}, format="parquet")
    held = str(tmp_path / "out/captions.parquet")
    assert [row["image"].width for row in load_images(held)] == [30, 31, 33]
    assert load_references(held) == {f"i{n}": TEXTS[n] for n in (0, 1, 3)}
    report = run(held, tmp_path / "again", {"filter": {"by": "column:score", "best": 1}})
    assert report["out"]["file"] == "captions.parquet"
    assert load_references(str(tmp_path / "again/captions.parquet")) == {
        "i0": [TEXTS[0][1]],
        "i1": TEXTS[1],
        "i3": ["a cat"],
    }


@pytest.mark.parametrize("format", ["coco", "csv", "metadata", "webdataset"])
def test_formats_of_one_caption_per_image(format: str, source: str, photos: Path, tmp_path: Path) -> None:
    where = f"{source}?images={photos}"
    steps = [{"filter": {"by": "length", "best": 1}}]
    report = run(where, tmp_path / "out", *steps, format=format)
    file = tmp_path / "out" / report["out"]["file"]
    assert list(read_captions(file, format=format).values()) == ["a blue ball on sand", TEXTS[1][0], "a cat"]
    with pytest.raises(CurationError, match="one caption per image, and 1 image has more, such as 'i0'"):
        run(where, tmp_path / "more", {"filter": {"by": "length", "min": 3}}, format=format)
    report = run(where, tmp_path / "more", {"filter": {"by": "length", "min": 3}})  # the steps are kept
    assert report["out"]["file"] == "captions.jsonl"


def test_formats_are_known(source: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="did you mean 'parquet'"):
        run(source, tmp_path / "out", {"dedup": {}}, format="parket")


# -- tables ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("query", ["", "?n=3&seed=4", "?skip=1", "?shard=2/2"])
@pytest.mark.parametrize("listed", [False, True])
def test_tables_are_read_as_everywhere(query: str, listed: bool, tmp_path: Path) -> None:
    ids = ["b", "a", "b", "c", "e\u0301", "d", "a"]
    texts = ["one", " two ", "NaN", "", "five", "six", "seven"]
    said = [[text, "more"] for text in texts] if listed else texts
    pq.write_table(
        pa.table({"image_id": ids, "caption": said, "weight": [float(n) for n in range(7)]}), tmp_path / "t.parquet"
    )
    where = f"{tmp_path / 't.parquet'}{query}"
    known = {key: value for key, value in load_references(where).items() if value}
    report = run(where, tmp_path / "out", {"filter": {"by": "length", "min": 0}})
    assert load_references(str(tmp_path / "out/captions.jsonl")) == known
    assert report["in"]["images"] == len(load_references(where))
    lines = [json.loads(line) for line in (tmp_path / "out/captions.jsonl").read_text().splitlines()]
    assert list(known) == [line["image_id"] for line in lines]
    weights = {key: line["weight"] for line in lines for key in [line["image_id"]] if not listed}
    if not query and not listed:
        assert weights == {"b": [0], "a": [1, 6], "\u00e9": [4], "d": [5]}


def test_images_of_a_table_are_found_as_everywhere(tmp_path: Path) -> None:
    pairs = [{"bytes": encode(photo(seed=i), "PNG"), "path": None} for i in range(3)]
    rows = datasets.Dataset.from_dict({"photo": pairs, "image_id": list("abc"), "caption": ["a", "b", "c"]})
    rows.cast_column("photo", datasets.Image()).to_parquet(tmp_path / "t.parquet")
    run(str(tmp_path / "t.parquet"), tmp_path / "out", {"filter": {"by": "length", "min": 0}}, format="parquet")
    assert [row["image"].size for row in load_images(str(tmp_path / "out/captions.parquet"))] == [photo().size] * 3


def as_lines(table: pa.Table, path: Path) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))
    return str(path)


@pytest.mark.parametrize("query", ["", "?n=3&seed=4", "?skip=1"])
@pytest.mark.parametrize("listed", [False, True])
def test_columns_of_json_lines_are_those_of_a_table(query: str, listed: bool, tmp_path: Path) -> None:
    ids = ["b", "a", "b", "c", "e\u0301", "d", "a"]
    texts = ["one", " two ", "NaN", "", "five", "six", "seven"]
    weights = [0.5, 1.0, 2.0, 3.0, None, 5.0, 6.0]
    columns: dict[str, Any] = {
        "image_id": ids,
        "caption": [[text, "more"] for text in texts] if listed else texts,
        "weight": [[weight, 1.0] for weight in weights] if listed else weights,
        "note": ["not a number"] * 7,
        "v": [[1.0, float(n), 2.0] for n in range(7)],
    }
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    lines = as_lines(pa.table(columns), tmp_path / "t.jsonl")
    steps = [
        {"dedup": {} if listed else {"near": 0.9, "embeddings": "v"}},  # a vector is of one caption
        {"filter": {"by": "column:weight", "min": 0, "unscored": "keep"}},
    ]
    made = [
        run(f"{where}{query}", tmp_path / f"{n}", *steps) for n, where in enumerate((lines, tmp_path / "t.parquet"))
    ]
    assert made[0]["records"] == made[1]["records"]
    assert contents(tmp_path / "0")["captions.jsonl"] == contents(tmp_path / "1")["captions.jsonl"]
    for name in ("decisions/1-dedup.parquet", "decisions/2-filter.parquet"):
        assert contents(tmp_path / "0")[name] == contents(tmp_path / "1")[name]
    with pytest.raises(CurationError, match="no column 'note' of numbers"):
        run(lines, tmp_path / "other", {"filter": {"by": "column:note", "min": 0}})


def test_objects_in_json_lines(source: str, photos: Path, tmp_path: Path) -> None:
    found = [[{"label": "dog", "score": 0.9}], [{"label": "cat", "score": 0.9}], [], [{"label": "cat", "score": 0.2}]]
    lines = [json.loads(line) | {"objects": found[n]} for n, line in enumerate(Path(source).read_text().splitlines())]
    Path(source).write_text("".join(json.dumps(line) + "\n" for line in lines))
    run(f"{source}?images={photos}", tmp_path / "out", {"filter": {"by": "detected", "min": 0}})
    assert {(row["before"], row["score"]) for row in rows(tmp_path / "out", "1-filter") if row["score"]} == {
        ("a cat", 1)
    }
