"""The result of an evaluation in every form that is printed or written."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet
import pytest

from captune.cli.main import main
from captune.errors import EvaluationError
from captune.evaluation.run import evaluate_files
from captune.evaluation.table import as_csv, as_latex, as_markdown, read_rows, records, table, write_rows


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path, str]:
    texts = {"a": "a red dog", "b": 'two cats, "asleep"', "c": "a house"}
    one, two = tmp_path / "a|b_1.jsonl", tmp_path / "two.csv"
    one.write_text("".join(json.dumps({"image_id": k, "caption": v}) + "\n" for k, v in texts.items()))
    two.write_text("image_id,caption\na,a dog\nb,cats\n")
    references = tmp_path / "refs.json"
    references.write_text(json.dumps({key: [text, f"{text} outside"] for key, text in texts.items()}))
    return one, two, str(references)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_rows_are_read_as_they_were_written(tmp_path: Path, suffix: str) -> None:
    texts = ["a dog\rand a cat", "two\nlines", 'a "cat", asleep', "\r", "plain"]
    rows = [{"image_id": str(n), "caption": text, "clip": str(n / 2)} for n, text in enumerate(texts)]
    write_rows(rows, tmp_path / f"rows{suffix}")
    assert read_rows(tmp_path / f"rows{suffix}") == rows


def test_a_row_of_another_width_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("image_id,caption,clip\n1,a dog, asleep,0.5\n")
    with pytest.raises(EvaluationError, match="line 2: expected 3 cells, as in the header, found 4: .'1', 'a dog'"):
        read_rows(tmp_path / "rows.csv")


def test_a_column_that_stands_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("image_id,clip,clip\n1,0.5,0.7\n")
    with pytest.raises(EvaluationError, match="the column 'clip' stands twice"):
        read_rows(tmp_path / "rows.csv")


@pytest.fixture
def result(files: Any) -> dict[str, Any]:
    return evaluate_files(files[:2], references=files[2], scorers=["rouge", "length"], per_image=True)


def test_csv_has_every_figure_as_a_number(result: dict[str, Any]) -> None:
    rows = list(csv.DictReader(io.StringIO(as_csv(result))))
    assert [(row["file"], row["scorer"], row["figure"]) for row in rows] == [
        (record["file"], record["scorer"], record["figure"]) for record in records(result)
    ]
    assert float(rows[0]["value"]) == result["scores"]["rouge"]["value"]
    assert rows[0]["signature"] == result["scores"]["rouge"]["signature"]


def test_markdown_and_latex_escape_what_means_something_there(result: dict[str, Any]) -> None:
    lines = as_markdown(result).splitlines()
    assert "a\\|b_1.jsonl" in lines[0] and lines[1].startswith("| --- | --- |")
    assert {line.count(" | ") for line in lines[:-2]} == {2}
    assert lines[-2:] == ["", "2 images; 95% intervals in brackets"]
    text = as_latex(result)
    assert "a|b\\_1.jsonl" in text and text.startswith("\\begin{tabular}{lrr}")
    assert text.endswith("\\end{tabular}\n\n2 images; 95\\% intervals in brackets")


def test_every_caption_with_its_own_scores(result: dict[str, Any]) -> None:
    rows = result["per_image"]
    assert len(rows) == 4 and {row["image_id"] for row in rows} == {"a", "b"}
    mean = sum(row["rouge"] for row in rows[:2]) / 2
    assert mean == pytest.approx(result["scores"]["rouge"]["value"])


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_the_command_writes_them(files: Any, tmp_path: Path, suffix: str, capsys: Any) -> None:
    out = tmp_path / f"scores{suffix}"
    arguments = ["evaluate", str(files[0]), "--references", files[2], "--scorers", "rouge", "--no-cache"]
    assert main([*arguments, "--per-image", str(out), "--format", "markdown"]) == 0
    assert capsys.readouterr().out.startswith("|  | ")
    if suffix == ".parquet":
        rows = parquet.read_table(out).to_pylist()
    elif suffix == ".csv":
        rows = list(csv.DictReader(out.open(newline="")))
    else:
        rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["caption"] for row in rows] == ["a red dog", 'two cats, "asleep"', "a house"]
    assert all(float(row["rouge"]) > 0 for row in rows)
    assert main([*arguments, "--per-image", str(tmp_path / "scores.xml")]) == 2


def test_without_references_health_alone_is_measured(files: Any, capsys: Any) -> None:
    assert main(["evaluate", str(files[0]), "--format", "csv"]) == 0
    said = capsys.readouterr()
    assert "only health is measured" in said.err
    assert {row["scorer"] for row in csv.DictReader(io.StringIO(said.out))} == {"health"}


def test_the_file_that_lacks_captions_is_named(files: Any) -> None:
    warnings = evaluate_files(files[:2], references=files[2], scorers=["length"])["warnings"]
    assert f"(1 in {files[1]})" in warnings[0]


def test_an_encoder_of_drawn_scenes_says_so_on_photos(tmp_path: Path, photos: str) -> None:
    captions = tmp_path / "caps.jsonl"
    captions.write_text("".join(json.dumps({"image_id": f"{i}.png", "caption": "a dog"}) + "\n" for i in range(2)))
    found = evaluate_files([captions], images=photos, scorers=["clip", "length"], bootstrap=0)
    assert [w for w in found["warnings"] if w.startswith("clip looks through storybook-clip")]


def test_every_format_has_the_paired_tests(files: Any) -> None:
    found = evaluate_files(files[:2], references=files[2], scorers=["rouge"], paired=True)
    test = found["others"][0]["paired"]["rouge"]["rouge"]
    shown = f"{test['difference']:+.4f}"
    for text in (table(found), as_markdown(found), as_latex(found)):
        assert shown in text and "difference to system 1" in text
    first, second = csv.DictReader(io.StringIO(as_csv(found)))
    assert float(second["difference"]) == test["difference"] and float(second["p_holm"]) == test["p_holm"]
    assert first["difference"] == first["p"] == ""


def test_a_caption_with_a_reference_is_not_said_to_lack_one(files: Any) -> None:
    """A file with fewer captions is named, one whose captions are the references, and nothing else."""
    said, own = evaluate_files(files[:2], references=files[2], scorers=["length"])["warnings"]
    assert "1 in " in said and "two.csv" in said and own.startswith(f"all 2 captions of {files[0]} stand word for word")
