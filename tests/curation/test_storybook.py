"""On storybook's alt texts, whose noise is known: what a filter keeps states fewer false facts."""

from __future__ import annotations

from pathlib import Path

import pytest
from curation_sets import run

from captune.cli.main import main
from captune.data import load_images
from captune.errors import SourceError
from captune.scorers import load_scorer
from captune.training.sft.config import SFTConfig


def precision(source: str) -> float:
    dataset = load_images(source, decode=False)
    pairs = [(text, row["scene"]) for row in dataset for text in row["references"]]
    judge = load_scorer("storybook")
    rows = judge.rows([text for text, _ in pairs], scene=[scene for _, scene in pairs])
    return judge.corpus(rows)["fact_precision"]


def test_a_filter_by_clip_keeps_what_is_true(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = "storybook:train?caption=alt_text&n=80"
    assert main(["curate", "filter", source, "--by", "clip", "--keep", "0.3", "--output", str(tmp_path / "out")]) == 0
    said = capsys.readouterr()
    held = tmp_path / "out/captions.parquet"
    assert said.out.splitlines()[-1] == f"set: {held}"
    assert "1-filter: 56 drop: not in the highest 0.3 by clip" in said.err
    assert len(load_images(str(held))) == 24
    assert precision(str(held)) > precision(source) + 0.15
    SFTConfig(images=str(held), model="storybook", output=tmp_path / "sft")


def test_the_oracle_is_a_scorer_too(tmp_path: Path) -> None:
    source = "storybook:train?caption=alt_text&n=40"
    report, rows = run(source, tmp_path / "out", {"filter": {"by": "storybook", "keep": 0.2}})
    assert report["out"]["captions"] == 8
    assert precision(str(tmp_path / "out/captions.parquet")) > precision(source) + 0.15
    kept = [row["score"] for row in rows if row["verdict"] == "keep"]
    assert min(kept) >= max(row["score"] for row in rows if row["verdict"] == "drop")


def test_columns_of_a_scheme() -> None:
    first = load_images("storybook:test?n=3")
    assert load_images("storybook:test?n=3&caption=alt_text")["references"] == [[text] for text in first["alt_text"]]
    with pytest.raises(SourceError, match="no column 'alt' of captions; it has references, scene, alt_text"):
        load_images("storybook:test?n=3&caption=alt")


def test_a_curated_table_is_trained_on(tmp_path: Path) -> None:
    """A tenth of it is held out, captioned and judged; a table that is streamed has no such part."""
    run("storybook:train?caption=alt_text&n=20", tmp_path / "set", {"levels": {"by": "clip", "bins": 2}})
    arguments = ["--model", "storybook", "--images", str(tmp_path / "set/captions.parquet"), "--condition", "level"]
    assert main(["sft", *arguments, "--max-steps", "1", "--batch-size", "2", "--output", str(tmp_path / "sft")]) == 0
    assert (tmp_path / "sft/scores.json").is_file()
