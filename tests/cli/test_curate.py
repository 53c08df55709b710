"""`captune curate` on the command line: a table on stdout, reasons on stderr, and wrong words refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from curation_sets import write

from captune.cli.main import main


@pytest.fixture
def source(tmp_path: Path) -> str:
    return write(tmp_path / "set.jsonl", [["a dog runs", "A dog runs."], ["a cat"], []])


def test_steps_of_a_file(source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "steps.yaml").write_text("- filter: {by: length, min: 3}\n- dedup\n")
    words = ["curate", source, "--steps", str(tmp_path / "steps.yaml"), "--output", str(tmp_path / "out")]
    assert main(words) == 0
    said = capsys.readouterr()
    table = [line.split() for line in said.out.splitlines()]
    assert table[0] == ["step", "in", "keep", "drop", "change", "move", "split", "out", "images"]
    assert table[1:3] == [["1-filter", "3", "2", "1", "0", "0", "0", "2", "1"],
                          ["2-dedup", "2", "1", "1", "0", "0", "0", "1", "1"]]  # fmt: skip
    assert table[3] == ["set:", str(tmp_path / "out/captions.jsonl")]
    assert "1-filter: 1 drop: length below 3" in said.err
    assert "2-dedup: 1 drop: repeats an equal caption" in said.err
    assert "not in the set: 1 image of the source without a caption" in said.err
    assert "the set names no images" in said.err
    assert main(words) == 0 and capsys.readouterr().out == said.out  # it is done


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["fliter", "SOURCE", "--steps", "x"], "unknown operation 'fliter'; did you mean 'filter'"),
        (["filter", "SOURCE", "--by", "length"], "filter has no rule"),
        (["filter", "SOURCE", "--by", "length", "--keeep", "0.3"], "did you mean '--keep'"),
        (["filter", "SOURCE", "--by", "length", "--keep", "3"], "--keep: '3' must be at most 1"),
        (["dedup", "SOURCE", "--near", "0.9"], "near needs vectors"),
        (["split", "SOURCE", "--format", "cvs"], "did you mean 'csv'"),
    ],
)
def test_refused(words: list[str], match: str, source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["curate", *(source if word == "SOURCE" else word for word in words), "--output", str(tmp_path / "out")]
    assert main(line) == 2
    assert match in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("operation", ["filter", "dedup", "levels", "split"])
def test_every_operation_explains_itself(operation: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["curate", operation, "--help"]) == 0
    assert f"captune curate {operation} " in capsys.readouterr().out
