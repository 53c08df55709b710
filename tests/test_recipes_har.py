"""HAR's recipes are read by the program that they are for, up to the models and data that nobody has yet."""

from __future__ import annotations

from pathlib import Path

import pytest

from captune.cli.config import build
from captune.cli.main import main
from captune.training.har.train import HARConfig

RECIPES = sorted((Path(__file__).parents[1] / "recipes" / "har").glob("*.yaml"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
def test_a_recipe_is_a_valid_config_and_opens_with_what_it_costs(recipe: Path, tmp_path: Path) -> None:
    config = build(HARConfig, {"output": tmp_path}, recipe)
    first = config.stage_1()
    assert first.batch_size * first.gradient_accumulation_steps == 64 and first.max_steps * 64 == pytest.approx(
        3 * 113_287, rel=1e-3
    ), "three passes"
    comment = recipe.read_text(encoding="utf-8").split("\n\n")[0]
    for needle in (f"captune har --config recipes/har/{recipe.name}", "Hardware:", "Time:", "The paper", "Ours:"):
        assert needle in comment


def test_a_recipe_says_what_to_fetch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(RECIPES) == 2
    monkeypatch.chdir(tmp_path)
    assert main(["har", "--config", str(RECIPES[0]), "--output", "run"]) == 2
    err = capsys.readouterr().err
    assert "Traceback" not in err and ("hf download" in err or "data/" in err)


def test_the_recipe_for_photographs_is_a_valid_config(tmp_path: Path) -> None:
    recipe = Path(__file__).parents[1] / "recipes" / "photos" / "har.yaml"
    config = build(HARConfig, {"output": tmp_path, "images": "photos/captions.csv"}, recipe)
    assert config.stage_1().cache_features and config.begin_token
    comment = recipe.read_text(encoding="utf-8").split("\n\n")[0]
    for needle in ("captune har --config recipes/photos/har.yaml", "Hardware:", "Time:", "Expected score:"):
        assert needle in comment
