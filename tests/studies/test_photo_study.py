"""The study of photographs, on drawn images under the names of the photos."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from captune import storybook
from studies.photos import evaluate, train
from studies.photos.experiments import ROWS


def data(folder: Path) -> tuple[Path, Path]:
    (folder / "images").mkdir()
    lines = ["image,caption"]
    names = [name for split in ("test", "choices", "train") for name in train.SPLITS[split][: evaluate.FEW]]
    rows = storybook.load("train", n=len(names))
    for name, row in zip(names, rows, strict=True):
        row["image"].save(folder / "images" / name)
        lines += [f'{name},"{text}"' for text in row["references"]]
    (folder / "captions.txt").write_text("\n".join(lines) + "\n")
    (folder / "texts.csv").write_text("\n".join(lines) + "\n")
    return folder / "captions.txt", folder / "texts.csv"


def test_the_splits_share_no_image() -> None:
    splits = train.SPLITS
    assert [len(set(splits[name])) for name in ("test", "choices", "few", "train")] == [100, 100, 200, 500]
    assert len({*splits["test"], *splits["choices"], *splits["train"]}) == 700 and {*splits["few"]} < {*splits["train"]}


def test_the_study_resumes_and_writes_results_without_paths(tmp_path: Path) -> None:
    captions, texts = data(tmp_path)
    argv = ["--quick", "--results", str(tmp_path / "results"), "--work", str(tmp_path / "work")]
    given = ["--data", str(captions), "--texts", str(texts), "--rows", "HAR stage 1", "--seeds", "7"]
    assert evaluate.main([*argv, *given]) == 0
    (file,) = (tmp_path / "results" / "rows").glob("*.json")
    written = file.read_text()
    record = json.loads(written)
    assert str(tmp_path) not in written and set(record["captions"]) <= set(train.SPLITS["test"])
    assert {"cider", "bleu_4", "bad_endings", "length", "distinct"} <= record["scores"]["test"].keys()
    text = (tmp_path / "results" / "tables.md").read_text()
    assert "| HAR stage 1 |" in text
    assert evaluate.main([*argv, *given]) == 0 and file.read_text() == written
    assert evaluate.main([*argv, "--tables"]) == 0 and (tmp_path / "results" / "tables.md").read_text() == text


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    captions, _ = data(tmp_path)
    with pytest.raises(SystemExit, match="--data flickr8k/captions.txt"):
        evaluate.main(["--quick", "--work", str(tmp_path)])
    name = train.SPLITS["test"][0]
    captions.write_text("".join(line for line in captions.read_text().splitlines(True) if not line.startswith(name)))
    with pytest.raises(SystemExit, match=f"lacks 1 images of the split test, the first is {name}"):
        train.split(captions, "test", tmp_path, evaluate.FEW)
    assert {row.name for row in ROWS["choices"]} > {"pooled", "as chosen"}
