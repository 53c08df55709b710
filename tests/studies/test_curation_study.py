"""The curation study: what is compared, how the known noise is counted, what its tables say."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from captune.data import load_images
from studies.curation import evaluate, experiments, tables

ROWS = {row.name: row for row in experiments.ROWS["rows"]}


def test_what_rows_depend_on_differs() -> None:
    for section in experiments.ROWS.values():
        assert len({json.dumps([row.depends(), row.source(1500)], sort_keys=True) for row in section}) == len(section)


def test_the_filters_and_random_keep_as_many() -> None:
    shares = {own["filter"]["keep"] for row in ROWS.values() for own in row.steps if "filter" in own}
    assert shares == {ROWS["random"].share}


def test_test_images_differ_by_seed_and_val_does_not() -> None:
    first, second = evaluate.sources(7), evaluate.sources(8)
    assert first["test"] != second["test"] and first["val"] == second["val"]


def test_references_are_clean_and_alt_texts_are_not_all() -> None:
    source = "storybook:train?n=60&seed=3"
    assert all(evaluate.clean_captions(source).values())
    noisy = evaluate.clean_captions(f"{source}&caption=alt_text")
    assert 0 < sum(noisy.values()) < 40
    rows = load_images(f"{source}&caption=alt_text", decode=False)
    silent = [i for i, (text,) in zip(rows["image_id"], rows["references"], strict=True) if "photo of the day" in text]
    assert not any(noisy[image_id] for image_id in silent)  # what states nothing is not clean


def test_auc_is_the_share_of_pairs_in_order() -> None:
    scores, good = np.array([0.1, 0.4, 0.4, 0.9, 0.2]), np.array([False, True, False, True, False])
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[good] for b in scores[~good]]
    assert evaluate.auc(scores, good) == pytest.approx(np.mean(pairs))
    assert evaluate.auc(scores, np.ones(5, dtype=bool)) is None


def test_the_study_runs_to_its_end_and_does_not_run_a_row_twice(tmp_path: Path) -> None:
    names = ["raw", "references", "filter by clip", "levels of clip"]
    argv = ["--quick", "--seeds", "7", "--results", str(tmp_path / "r"), "--work", str(tmp_path / "w"), "--rows"]
    assert evaluate.main([*argv, *names]) == 0
    files = sorted((tmp_path / "r/rows").glob("*.json"))
    records = {own["name"]: own for own in (json.loads(file.read_text()) for file in files)}
    assert set(records) == set(names)
    assert records["filter by clip"]["noise"]["kept"] == math.ceil(ROWS["random"].share * evaluate.QUICK_IMAGES)
    assert len(records["levels of clip"]["levels"]) == 5
    before, text = [file.read_bytes() for file in files], (tmp_path / "r/tables.md").read_text()
    assert "| filter by clip | 40 |" in text and "levels of clip, level 4" in text
    assert evaluate.main([*argv, *names]) == 0
    assert [file.read_bytes() for file in files] == before and (tmp_path / "r/tables.md").read_text() == text


def record(name: str, seed: int, f1: float, **more: Any) -> dict[str, Any]:
    scores = dict.fromkeys(tables.FIGURES.values(), f1)
    return {"section": "rows", "name": name, "seed": seed, "scores": {"test": scores}, **more}


def test_the_share_closed_is_taken_within_seeds(tmp_path: Path) -> None:
    records = [record("raw", 7, 0.2), record("references", 7, 0.6), record("oracle", 7, 0.5)]
    records += [record("raw", 8, 0.4), record("references", 8, 0.5), record("oracle", 8, 0.475)]
    text = tables.write(records, tmp_path).read_text()
    (line,) = [line for line in text.splitlines() if line.startswith("| oracle")]
    assert line.count("0.750 [0.750, 0.750]") == 2


def test_levels_that_fall_are_not_called_rising(tmp_path: Path) -> None:
    def levels(*values: float) -> list[dict[str, Any]]:
        return [{"test": dict.fromkeys(tables.FIGURES.values(), value)} for value in values]

    rows = [record("levels of clip", 7, 0.5, levels=levels(0.1, 0.2, 0.3, 0.4, 0.5))]
    rows.append(record("levels of clip", 8, 0.5, levels=levels(0.1, 0.3, 0.2, 0.4, 0.5)))
    assert "| 1 of 2 |" in tables.write(rows, tmp_path).read_text()
