"""The page of a curated set: every count, decision and example, what the truth says, and that captions stay text."""

from __future__ import annotations

import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from curation_sets import run, write

from captune.cli.main import main
from captune.errors import ReportError
from captune.report.curation import CLASSES, render


def text_of(page: Path) -> str:
    html = re.sub(r"<style>.*?</style>", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html))


def test_what_went_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = [["one two three", "<script>alert(1)</script> a & b", "x"], ["a b. c d e. f g h", "y"]]
    source = write(tmp_path / "set.jsonl", texts)
    steps = tmp_path / "steps.yaml"
    steps.write_text("- filter: {by: length, min: 2}\n- split: {}\n")
    folder = tmp_path / "out"
    assert main(["curate", source, "--steps", str(steps), "--output", str(folder)]) == 0
    page = tmp_path / "page.html"
    assert main(["report", str(folder), "--output", str(page)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(page)
    text = text_of(page)
    assert "Of 5 captions of 2 images 4 captions of 2 images are left." in text
    assert "1-filter 5 3 2 0 0 0 3 2" in text and "2-split 3 2 0 0 0 1 4 2" in text
    assert "drop: length below 2 2, 40.0" in text
    assert "split: sentences of their own 1" in text and "a b. c d e. f g h" in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt; a &amp; b" in text and "<script" not in page.read_text()
    assert "Against the truth" not in text
    with pytest.raises(ReportError, match="is missing"):
        (folder / "decisions/2-split.parquet").unlink()
        render(folder, page)


def test_the_truth_and_pictures(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    source = "storybook:train?caption=alt_text&n=40"
    run(source, folder, {"filter": {"by": "storybook", "keep": 0.25}})
    text = text_of(render(folder, tmp_path / "page.html"))
    html = (tmp_path / "page.html").read_text()
    assert html.count("data:image/png;base64,") == 8 and "No image" not in html
    rows = {name: [int(part) for part in re.search(rf"{name} (\d+) (\d+)", text).groups()] for name in CLASSES[1:]}  # type: ignore[union-attr]
    kept = sum(row["verdict"] == "keep" for row in pq.read_table(folder / "decisions/1-filter.parquet").to_pylist())
    assert sum(stayed for _, stayed in rows.values()) <= kept == 10
    (good, good_kept), (bad, bad_kept) = rows["all true"], rows["3 or more false"]
    assert good_kept / good > 2 * bad_kept / bad
    assert len(re.findall(r'<span><i style="height:[\d.]+%"></i><b style="height:[\d.]+%"></b></span>', html)) == 24


def test_a_folder_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "curation.json").write_text('{"kind": "run"}')
    with pytest.raises(ReportError, match="no record of a curation"):
        render(tmp_path, tmp_path / "page.html")


def test_a_step_without_notes_and_captions_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write(tmp_path / "set.jsonl", [["a dog", "A dog.", " "], ["nan", "a cat"]])
    run(source, tmp_path / "out", {"dedup": {}})
    assert main(["curate", "report", str(tmp_path / "out"), "--output", str(tmp_path / "page.html")]) == 0
    text = text_of(tmp_path / "page.html")
    assert "1-dedup 3 2 1" in text and "2 left out of the source: references that are blank" in text
