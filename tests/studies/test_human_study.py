"""The study of scorers against people, on judgements made here."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from captune.data.judgements import read_judgements
from studies.human import evaluate, tables


def data(folder: Path) -> tuple[Path, Path]:
    rng = np.random.default_rng(1)
    words = ["dog", "cat", "runs", "sits", "red", "blue", "grass", "street", "two", "small"]
    texts = {f"{i}.jpg": [" ".join(rng.choice(words, 5, replace=False)) for _ in range(5)] for i in range(12)}
    lines = [
        "\t".join([f"{i}.jpg", f"{(i + step) % 12}.jpg#0", *[str(rng.integers(1, 5))] * 3])
        for i in range(12)
        for step in (1, 2, 5)
    ]
    judgements, tokens = folder / "ExpertAnnotations.txt", folder / "tokens.txt"
    judgements.write_text("\n".join(lines) + "\n")
    tokens.write_text("".join(f"{n}#{k}\t{text}\n" for n, own in texts.items() for k, text in enumerate(own)))
    return judgements, tokens


def test_the_study_writes_results_without_paths_and_tables(tmp_path: Path) -> None:
    judgements, tokens = data(tmp_path)
    argv = ["--judgements", str(judgements), "--captions", str(tokens), "--scorers", "bleu", "cider", "length",
            "--bootstrap", "30", "--results", str(tmp_path / "results"), "--work", str(tmp_path / "work")]  # fmt: skip
    assert evaluate.main(argv) == 0
    written = (tmp_path / "results" / "flickr8k-expert.json").read_text()
    assert str(tmp_path) not in written
    made = json.loads(written)
    assert made["versions"]["numpy"] and set(made["experts"]) == {"one", "mean"}
    text = (tmp_path / "results" / "tables.md").read_text()
    assert "| `cider` |" in text and "RefCLIP-S" in text and "| `bleu bleu_1` |" in text
    assert evaluate.main(["--tables", "--results", str(tmp_path / "results")]) == 0
    assert (tmp_path / "results" / "tables.md").read_text() == text


def test_experts_who_agree_agree(tmp_path: Path) -> None:
    judgements, tokens = data(tmp_path)  # three equal grades
    people = evaluate.experts(read_judgements(judgements, captions=[tokens]), 20)
    assert people["one"]["values"]["tau_b"] == pytest.approx(1.0)
    assert people["mean"]["values"]["spearman"] == pytest.approx(1.0)


def test_the_study_names_its_data(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        evaluate.main(["--results", str(tmp_path)])


def test_the_committed_tables_are_those_of_the_results(tmp_path: Path) -> None:
    for file in (evaluate.HERE / "results").glob("*.json"):
        shutil.copy(file, tmp_path)
    assert tables.write(tmp_path).read_text() == (evaluate.HERE / "results" / "tables.md").read_text()
