"""The HAR study: what is compared, how it goes on after a stop, what its tables say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from captune import storybook
from captune.storybook.scorer import StorybookScorer
from captune.utils.hashing import fingerprint
from studies.har import evaluate, experiments, tables, train

FIGURES = ("held_out_clip", "cider", "bleu_4", "fact_f1", "relation_f1", "subkind_f1", "hallucinated_per_fact",
           "bad_endings", "length", "clip")  # fmt: skip


def record(name: str, seed: int, **figures: float) -> dict[str, Any]:
    scores = dict.fromkeys(FIGURES, 0.5) | figures
    return {
        "name": name, "seed": seed, "training_seconds": [1.0], "scores": {"test": scores, "ood": scores},
        "cost": {"seconds": 0.01, "forward_passes": 3.0},
    }  # fmt: skip


def write(folder: Path, *records: dict[str, Any]) -> None:
    (folder / "rows").mkdir(parents=True, exist_ok=True)
    for own in records:
        (folder / "rows" / f"{own['seed']}-{fingerprint(own['name'])}.json").write_text(json.dumps(own))


@pytest.mark.parametrize("section", ["rows", "choices"])
def test_names_and_what_rows_depend_on_differ(section: Any) -> None:
    rows = experiments.ROWS[section]
    assert len({row.name for row in rows}) == len(rows)
    assert len({json.dumps(row.depends(), sort_keys=True) for row in rows}) == len(rows)


def test_pairs_name_rows() -> None:
    names = {row.name for row in experiments.ROWS["rows"]}
    assert {name for pair in [*tables.PAIRS, *tables.CEILINGS] for name in pair} <= names


def test_test_images_differ_by_seed_and_val_does_not() -> None:
    first, second = evaluate.sources(7), evaluate.sources(8)
    assert first["test"] != second["test"] and first["ood"] != second["ood"] and first["val"] == second["val"]


def test_the_consensus_is_true_and_looks_at_no_reference_of_its_image() -> None:
    images = storybook.load("val", 12, seed=3)
    columns = {name: list(images[name]) for name in ("references", "scene")}
    said = evaluate.consensus(columns)
    rows = StorybookScorer().rows(said, scene=columns["scene"])
    assert StorybookScorer().corpus(rows)["fact_precision"] == 1
    assert evaluate.consensus({**columns, "references": columns["references"][::-1]}) == said  # frequencies alone


def test_a_row_that_is_there_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "held_out_encoder", lambda *_, **__: type("Encoder", (), {"digest": "e"})())
    monkeypatch.setattr(evaluate.Study, "exams", lambda *_: {})
    monkeypatch.setattr(train, "train", lambda *_, **__: train.Trained("m", None, [1.0]))
    made: list[str] = []
    monkeypatch.setattr(evaluate, "measure", lambda row, *_: made.append(row.name) or {"scores": {}})
    args = evaluate.Study.arguments(["--seeds", "7", "--results", str(tmp_path / "r"), "--work", str(tmp_path / "w")])
    assert "all" in evaluate.Study(args).run() and len(made) == len(list(experiments.ROWS["rows"]))
    assert "all" in evaluate.Study(args).run() and len(made) == len(list(experiments.ROWS["rows"]))
    args.rows = ["no such row"]
    with pytest.raises(SystemExit, match="no such row"):
        evaluate.Study(args).run()


def test_the_gain_is_a_ratio_within_seeds(tmp_path: Path) -> None:
    for seed, low in ((7, 4.0), (8, 5.0)):
        write(tmp_path, record(experiments.SFT, seed, cider=low), record(experiments.SCST, seed, cider=1.2 * low))
    text = tables.write(tmp_path)[0].read_text()
    assert f"| {experiments.SCST} / {experiments.SFT} | 1.200 [1.200, 1.200] | 2 of 2 |" in text


def test_fidelity_has_a_direction(tmp_path: Path) -> None:
    assert tables.verdict(tables.Estimate(0.2, 0.1, 0.3), 1) == "better"
    assert tables.verdict(tables.Estimate(0.2, 0.1, 0.3), -1) == "worse"  # more false facts
    assert tables.verdict(tables.Estimate(0.2, -0.1, 0.3), 1) == "open"
    assert tables.verdict(tables.Estimate(0.2, None, None), 1) == ""


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    write(tmp_path, *(record(row.name, seed) for row in experiments.ROWS["rows"] for seed in (7, 8)))
    first = [file.read_bytes() for file in tables.write(tmp_path)]
    assert [file.read_bytes() for file in tables.write(tmp_path)] == first
