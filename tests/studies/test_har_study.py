"""The HAR study: what is compared, how it goes on after a stop, what its tables say."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "studies" / "har"))

import comparison
import measures
import systems

from captune import storybook
from captune.storybook.scorer import StorybookScorer
from captune.utils.hashing import fingerprint

FIGURES = ("held_out_clip", "cider", "bleu_4", "fact_f1", "relation_f1", "subkind_f1", "hallucinated_per_fact",
           "bad_endings", "length", "clip")  # fmt: skip


@pytest.fixture(scope="module")
def study() -> ModuleType:
    """studies/har/run.py, under a name that the other studies' run.py do not have."""
    spec = importlib.util.spec_from_file_location("har_study", Path(systems.__file__).parent / "run.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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


@pytest.mark.parametrize("section", [systems.rows, systems.choices])
def test_names_and_what_rows_depend_on_differ(section: Any) -> None:
    rows = list(section(7))
    assert len({row.name for row in rows}) == len(rows)
    assert len({json.dumps(row.depends(), sort_keys=True) for row in rows}) == len(rows)


def test_pairs_name_rows() -> None:
    names = {row.name for row in systems.rows(7)}
    assert {name for pair in [*comparison.PAIRS, *comparison.CEILINGS] for name in pair} <= names


def test_test_images_differ_by_seed_and_val_does_not() -> None:
    first, second = measures.sources(7), measures.sources(8)
    assert first["test"] != second["test"] and first["ood"] != second["ood"] and first["val"] == second["val"]


def test_the_consensus_is_true_and_looks_at_no_reference_of_its_image() -> None:
    images = storybook.load("val", 12, seed=3)
    columns = {name: list(images[name]) for name in ("references", "scene")}
    said = measures.consensus(columns)
    rows = StorybookScorer().rows(said, scene=columns["scene"])
    assert StorybookScorer().corpus(rows)["fact_precision"] == 1
    assert measures.consensus({**columns, "references": columns["references"][::-1]}) == said  # frequencies alone


def test_a_row_that_is_there_is_not_run_again(
    study: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measures, "held_out_encoder", lambda *_, **__: type("Encoder", (), {"digest": "e"})())
    monkeypatch.setattr(study.Study, "exams_of", lambda *_: {})
    monkeypatch.setattr(measures, "train", lambda *_, **__: measures.Trained("m", None, [1.0]))
    made: list[str] = []
    monkeypatch.setattr(measures, "measure", lambda row, *_: made.append(row.name) or {"scores": {}})
    args = study.arguments(["--seeds", "7", "--results", str(tmp_path / "r"), "--work", str(tmp_path / "w")])
    assert "all" in study.Study(args).run() and len(made) == len(list(systems.rows(7)))
    assert "all" in study.Study(args).run() and len(made) == len(list(systems.rows(7)))
    args.rows = ["no such row"]
    with pytest.raises(SystemExit, match="no such row"):
        study.Study(args).run()


def test_the_gain_is_a_ratio_within_seeds(tmp_path: Path) -> None:
    for seed, low in ((7, 4.0), (8, 5.0)):
        write(tmp_path, record(systems.SFT, seed, cider=low), record(systems.SCST, seed, cider=1.2 * low))
    text = comparison.write(tmp_path)[0].read_text()
    assert f"| {systems.SCST} / {systems.SFT} | 1.200 [1.200, 1.200] | 2 of 2 |" in text


def test_fidelity_has_a_direction(tmp_path: Path) -> None:
    assert comparison.verdict(comparison.Estimate(0.2, 0.1, 0.3), 1) == "better"
    assert comparison.verdict(comparison.Estimate(0.2, 0.1, 0.3), -1) == "worse"  # more false facts
    assert comparison.verdict(comparison.Estimate(0.2, -0.1, 0.3), 1) == "open"
    assert comparison.verdict(comparison.Estimate(0.2, None, None), 1) == ""


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    write(tmp_path, *(record(row.name, seed) for row in systems.rows(7) for seed in (7, 8)))
    first = [file.read_bytes() for file in comparison.write(tmp_path)]
    assert [file.read_bytes() for file in comparison.write(tmp_path)] == first
