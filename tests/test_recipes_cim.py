"""CIM's recipes are configs of `captune grpo`, with the paper's settings."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import yaml

from captune.cli.config import build
from captune.cli.main import main
from captune.training.grpo.config import PRESETS, CaptionGRPOConfig

FOLDER = Path(__file__).parents[1] / "recipes" / "cim"
RECIPES = sorted(FOLDER.glob("*.yaml"))
IDS = [recipe.stem for recipe in RECIPES]
MODELS = {"llava-1.5-7b", "qwen2-vl-7b", "qwen2.5-vl-7b", "internvl2-8b", "internvl2.5-8b", "internvl3-8b"}
PROCESSES = {"Here 8 GPUs": 8, "Here 16 GPUs": 16}


def test_there_is_one_of_each_model():
    assert set(IDS) == MODELS


@pytest.mark.parametrize("recipe", RECIPES, ids=IDS)
def test_every_setting_is_one_of_captune_grpo(recipe):
    names = {field.name for field in dataclasses.fields(CaptionGRPOConfig)}
    assert set(yaml.safe_load(recipe.read_text(encoding="utf-8"))) <= names


@pytest.mark.parametrize("recipe", RECIPES, ids=IDS)
def test_the_settings_are_the_papers(recipe, tmp_path):
    text = recipe.read_text(encoding="utf-8")
    config = build(CaptionGRPOConfig, {"output": tmp_path}, recipe, PRESETS)
    assert config.preset == "cim" and config.reward == "grc:runs/cim-corpus + qir:runs/cim-corpus"
    assert config.num_generations == 5 and config.learning_rate == 1e-6 and config.epochs == 2
    processes = next(count for words, count in PROCESSES.items() if words in text)
    mini_batch = config.batch_size * config.gradient_accumulation_steps * processes
    assert mini_batch == 64 and mini_batch * config.steps_per_generation == 256


@pytest.mark.parametrize("recipe", RECIPES, ids=IDS)
def test_a_recipe_begins_with_its_command_hardware_time_and_figures(recipe):
    comment, _, settings = recipe.read_text(encoding="utf-8").partition("\n\n")
    assert all(line.startswith("#") for line in comment.splitlines())
    needles = (
        f"grpo --config recipes/cim/{recipe.name}",
        "Hardware:",
        "Time: not measured",
        "The paper",
        "Ours: not run",
    )
    assert all(needle in comment for needle in needles)
    assert "Not stated in the paper" in settings


@pytest.mark.parametrize("recipe", RECIPES, ids=IDS)
def test_a_recipe_says_what_is_missing(recipe, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["grpo", "--config", str(recipe), "--output", "run", "--device", "cpu"]) == 2
    err = capsys.readouterr().err
    assert "Traceback" not in err
    assert "hf download" in err or "models/" in err or "runs/cim-corpus" in err or "data/" in err
