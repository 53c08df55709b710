"""The recipes are read by the program that they are for, up to the data that nobody has yet."""

from __future__ import annotations

from pathlib import Path

import pytest

from captune.cli.config import build
from captune.cli.main import main

RECIPES = sorted((Path(__file__).parents[1] / "recipes").glob("vizer/*.yaml"))
IDS = [recipe.stem for recipe in RECIPES]


def test_there_are_recipes():
    assert len(RECIPES) >= 4


@pytest.mark.parametrize("recipe", RECIPES, ids=IDS)
def test_a_recipe_is_a_valid_config(recipe, tmp_path):
    from captune.training.vizer import config as vizer

    config = build(vizer.ViZerConfig, {"output": tmp_path}, recipe, vizer.PRESETS)
    assert config.preset == "paper"


@pytest.mark.parametrize("recipe", RECIPES, ids=IDS)
def test_a_recipe_begins_with_its_command_hardware_time_and_figures(recipe):
    comment = recipe.read_text(encoding="utf-8").split("\n\n")[0]
    assert all(line.startswith("#") for line in comment.splitlines())
    for needle in (f"captune vizer --config recipes/vizer/{recipe.name}", "Hardware:", "Time:", "The paper", "Ours:"):
        assert needle in comment


@pytest.mark.parametrize("recipe", RECIPES, ids=IDS)
def test_a_recipe_says_what_to_fetch(recipe, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["vizer", "--config", str(recipe), "--output", "run"]) == 2
    err = capsys.readouterr().err
    assert "Traceback" not in err
    assert "hf download" in err or "data/" in err
