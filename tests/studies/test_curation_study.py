"""The curation study: what is compared, how the known noise is counted, what its tables say."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from studies.curation import evaluate, experiments, tables, wrong

ROWS = {row.name: row for row in experiments.ROWS["rows"]}


def test_what_rows_depend_on_differs() -> None:
    for section in experiments.ROWS.values():
        assert len({json.dumps(row.depends(), sort_keys=True) for row in section}) == len(section)


def test_the_filters_and_random_keep_as_many() -> None:
    first = [own["filter"]["keep"] for row in ROWS.values() for own in row.steps if "keep" in own["filter"]]
    assert len(set(first)) == 1 and round(first[0] * experiments.POOL) == ROWS["random"].images


def test_images_differ_by_seed() -> None:
    assert evaluate.sources(7) != evaluate.sources(8)
    pools = {replace(row, seed=seed).pool() for seed in (7, 8) for row in ROWS.values()}
    assert len(pools) == 2  # one a seed


def test_references_are_clean_and_alt_texts_are_not_all() -> None:
    source = "storybook:train?n=60&seed=3"
    good, figures = evaluate.clean_captions(*evaluate.first_captions(source))
    assert good.all() and figures["fact_precision"] == 1 and figures["captions"] == 60
    texts, scenes = evaluate.first_captions(f"{source}&caption=alt_text")
    noisy, figures = evaluate.clean_captions(texts, scenes)
    assert 0 < noisy.sum() < 40 and figures["clean"] == pytest.approx(noisy.mean(), abs=1e-5)
    silent = [i for i, text in enumerate(texts) if "photo of the day" in text]
    assert not noisy[silent].any()  # what states nothing is not clean


def test_auc_is_the_share_of_pairs_in_order() -> None:
    scores, good = np.array([0.1, 0.4, 0.4, 0.9, 0.2]), np.array([False, True, False, True, False])
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[good] for b in scores[~good]]
    assert wrong.auc(scores, good) == pytest.approx(np.mean(pairs))
    assert wrong.auc(scores, np.ones(5, dtype=bool)) is None


@pytest.mark.parametrize("whole", [False, True])
def test_injected_captions_are_another_images_and_none_is_lost(whole: bool) -> None:
    own = {f"i{n}": [f"i{n} c{k}" for k in range(1 + n % 3)] for n in range(40)}
    texts, marks = wrong.injected(own, 0.3, seed=7, whole=whole)
    pairs = [(image, text, x) for image in own for text, x in zip(texts[image], marks[image], strict=True)]
    assert all(text.startswith(f"{image} ") != x for image, text, x in pairs)
    assert sorted(text for _, text, _ in pairs) == sorted(text for texts in own.values() for text in texts)
    if whole:
        assert sum(any(own) for own in marks.values()) == 12 and all(len(set(own)) == 1 for own in marks.values())
    else:
        assert sum(x for *_, x in pairs) == round(0.3 * len(pairs))
    assert wrong.injected(own, 0.3, seed=7, whole=whole) == (texts, marks)


def test_injected_captions_are_found(tmp_path: Path) -> None:
    args = argparse.Namespace(quick=True)
    rows = [row for row in experiments.ROWS["wrong"] if row.name in ("storybook, clip", "storybook, reassign")]
    for row in rows:
        found = wrong.judge(row, wrong.Data.of(row, args), tmp_path)
        assert found["wrong"] == 9 and found["auc"] > 0.8
    assert len(rows) == 2


def test_the_study_runs_to_its_end_and_does_not_run_a_row_twice(tmp_path: Path) -> None:
    two = "filter by pmi - 0.5 length"
    names = [two, "levels of clip"]
    argv = ["--quick", "--seeds", "7", "--results", str(tmp_path / "r"), "--work", str(tmp_path / "w"), "--rows"]
    assert evaluate.main([*argv, *names]) == 0
    files = sorted((tmp_path / "r").glob("*/*.json"))
    records = {own["name"]: own for own in (json.loads(file.read_text()) for file in files)}
    assert set(records) == set(names)
    assert [own["name"] for own in records[two]["sets"]] == [own["name"] for own in ROWS[two].sets]
    assert records[two]["scores"] == records[two]["sets"][-1]["scores"]
    assert len(records["levels of clip"]["levels"]) == 5
    before, text = [file.read_bytes() for file in files], (tmp_path / "r/tables.md").read_text()
    assert f"| {two} | 2 |" in text and "levels of clip: 4" in text
    assert evaluate.main([*argv, *names]) == 0
    assert [file.read_bytes() for file in files] == before and (tmp_path / "r/tables.md").read_text() == text


def record(name: str, seed: int, f1: float, section: str = "rows", **more: Any) -> dict[str, Any]:
    scores = dict.fromkeys(tables.FIGURES.values(), f1)
    return {"section": section, "name": name, "seed": seed, "scores": {"test": scores}, **more}


def test_the_share_closed_is_taken_within_seeds(tmp_path: Path) -> None:
    records = [record("raw", 7, 0.2), record("references", 7, 0.6), record("oracle", 7, 0.5)]
    records += [record("raw", 8, 0.4), record("references", 8, 0.5), record("oracle", 8, 0.475)]
    text = tables.write(records, tmp_path).read_text()
    (line,) = [line for line in text.splitlines() if line.startswith("| oracle")]
    assert line.count("0.750 [0.750, 0.750]") == 2


def test_levels_that_fall_are_not_called_rising(tmp_path: Path) -> None:
    def levels(*values: float) -> list[dict[str, Any]]:
        return [{"test": {**dict.fromkeys(tables.FIGURES.values(), value), "clip": 0.5}} for value in values]

    rows = [record("levels of clip", 7, 0.5, "levels", levels=levels(0.1, 0.2, 0.3, 0.4, 0.5))]
    rows.append(record("levels of clip", 8, 0.5, "levels", levels=levels(0.1, 0.3, 0.2, 0.4, 0.5)))
    (line,) = [
        own for own in tables.write(rows, tmp_path).read_text().splitlines() if "rises with every level |" in own
    ]
    assert line.count("1 of 2") == len(tables.FIGURES) and line.endswith("| 0 of 2 |")
