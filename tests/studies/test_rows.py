"""What holds for every study: rows are data, finished rows stay finished, a row is a config of its command."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from captune.cli.config import build
from captune.cli.train import METHODS

STUDIES = ("cim", "har", "vizer", "zero_label")
UNFINISHED = {  # when the results were committed
    "exact facts, 2000 scenes", "exact facts, 16000 scenes", "exact facts, 128000 scenes",
    "vizer straight-through", "vizer + clip + qir, 3 rounds",
}  # fmt: skip


def study(name: str, tmp_path: Path, *more: str) -> Any:
    kind = importlib.import_module(f"studies.{name}.evaluate").Study
    return kind(kind.arguments(["--work", str(tmp_path / "work"), *more]))


@pytest.mark.parametrize("name", STUDIES)
def test_committed_rows_are_finished(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "har":  # its held-out encoder takes minutes to build; the results have its digest
        from studies.har import evaluate

        encoder = json.loads((Path(evaluate.__file__).parent / "results" / "encoder.json").read_text())
        monkeypatch.setattr(evaluate, "held_out_encoder", lambda *_, **__: SimpleNamespace(**encoder))
    started = study(name, tmp_path)
    todo = [row for row in started.todo() if not started.store.find(started.key(row))]
    assert {row.name for row in todo} <= UNFINISHED and len(started.todo()) >= 70


@pytest.mark.parametrize("name", STUDIES)
def test_no_two_rows_share_a_file(name: str, tmp_path: Path) -> None:
    started = study(name, tmp_path, "--tables")
    for section, rows in started.rows.items():
        files = [started.store.file({"section": section, "name": row.name, "seed": 7}) for row in rows]
        assert len(set(files)) == len(files) > 1


@pytest.mark.parametrize("name", STUDIES)
def test_every_row_that_is_one_run_is_a_config(name: str, tmp_path: Path) -> None:
    started = study(name, tmp_path, "--export", str(tmp_path))
    files = started.export(tmp_path)
    assert len(files) >= 4
    for file in files:
        method = METHODS[file.suffixes[-2][1:]]
        config = build(method.config, {"model": "storybook", "output": tmp_path / "run"}, file, method.presets)
        assert config.images.startswith("storybook:"), file


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_of_one_captioner_refuses_a_second(name: str, tmp_path: Path) -> None:
    flags = ["--bases", "storybook", "other"]
    if name == "vizer":
        rows = study(name, tmp_path, *flags).todo()
        assert {row.base for row in rows} == {"storybook", "other"}
    else:  # a second one's rows would count as finished by the first
        with pytest.raises(SystemExit):
            study(name, tmp_path, *flags)
