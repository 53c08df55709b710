from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from captune.cli.config import add_fields, build
from captune.errors import UsageError


@dataclass
class Config:
    images: str = field(metadata={"help": "what to learn from"})
    preset: Literal["calm", "bold"] = field(default="calm", metadata={"help": "named settings"})
    rate: float = field(default=1e-3, metadata={"help": "how fast, in % of a step"})
    steps: int = 10
    blind: bool = True
    width: int | None = None
    sources: list[str] = field(default_factory=list)
    output: Path = Path("runs/x")
    eval_images: str = field(default="val", metadata={"aliases": ("evaluation",), "group": "evaluation"})

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise ValueError("steps must not be negative")


PRESETS = {"calm": {"rate": 0.5, "steps": 1}, "bold": {"rate": 2.0}}


def parse(*argv: str, file: Path | None = None) -> Config:
    parser = argparse.ArgumentParser()
    add_fields(parser, Config)
    return build(Config, vars(parser.parse_args(argv)), file, PRESETS)


def write(folder: Path, text: str) -> Path:
    (folder / "c.yaml").write_text(text, encoding="utf-8")
    return folder / "c.yaml"


def test_each_kind_of_field_becomes_a_flag():
    config = parse(
        "--images", "a", "--no-blind", "--width", "3", "--rate", "1e-4", "--sources", "x", "y", "--output", "o"
    )
    assert config == Config("a", "calm", 1e-4, 1, False, 3, ["x", "y"], Path("o"))


def test_flags_win_over_file_over_preset_over_defaults(tmp_path):
    file = write(tmp_path, "images: f\npreset: bold\nrate: 1e-5\nsteps: 4\n")  # YAML reads 1e-5 as a text
    config = parse("--steps", "9", file=file)
    assert (config.images, config.preset, config.rate, config.steps) == ("f", "bold", 1e-5, 9)
    assert parse("--images", "a", "--preset", "bold").rate == 2.0
    assert parse("--images", "a").rate == 0.5


def test_none_is_a_value_of_an_optional_field(tmp_path):
    assert parse("--images", "a", "--width", "none").width is None
    assert parse("--images", "a", file=write(tmp_path, "width: null")).width is None


@pytest.mark.parametrize(
    ("text", "needle"),
    [
        ("stepz: 3", "did you mean 'steps'"),
        ("steps: 2.5", "steps: 2.5 is not a whole number"),
        ("rate: fast", "rate: 'fast' is not a number"),
        ("blind: maybe", "is not true or false"),
        ("preset: boldd", "did you mean 'bold'"),
        ("steps: [1, 2]", "is not a whole number"),
        ("steps: -1", "steps must not be negative"),
        ("- steps", "name: value"),
        ("a: [", "not valid YAML"),
    ],
)
def test_a_bad_file_is_named_with_its_mistake(tmp_path, text, needle):
    with pytest.raises(UsageError, match=r".") as e:
        parse("--images", "a", file=write(tmp_path, text))
    assert needle in str(e.value)
    assert "\n" not in str(e.value)


def test_a_missing_file_and_a_missing_field_are_usage_errors(tmp_path):
    with pytest.raises(UsageError, match="nowhere.yaml"):
        parse("--images", "a", file=tmp_path / "nowhere.yaml")
    with pytest.raises(UsageError, match="--images"):
        parse()


def test_help_shows_meaning_and_default():
    parser = argparse.ArgumentParser()
    add_fields(parser, Config)
    text = " ".join(parser.format_help().split())
    assert "what to learn from" in text and "required:" in text
    assert "how fast, in % of a step (default: 0.001)" in text
    assert "--no-blind" in text


def test_a_former_name_works_as_flag_and_as_key_and_warns(tmp_path):
    with pytest.warns(FutureWarning, match="--evaluation is now called --eval-images"):
        assert parse("--images", "a", "--evaluation", "b").eval_images == "b"
    file = write(tmp_path, "evaluation: c")
    with pytest.warns(FutureWarning, match="c.yaml: evaluation is now called eval_images"):
        assert parse("--images", "a", file=file).eval_images == "c"
    with pytest.warns(FutureWarning):  # a flag of today wins over a key of yesterday
        assert parse("--images", "a", "--eval-images", "d", file=file).eval_images == "d"
    with pytest.warns(FutureWarning), pytest.raises(UsageError, match="both are given"):
        parse("--images", "a", "--evaluation", "b", "--eval-images", "c")


def test_help_shows_groups_and_hides_former_names():
    parser = argparse.ArgumentParser()
    add_fields(parser, Config)
    text = parser.format_help()
    assert text.index("required:") < text.index("settings:") < text.index("evaluation:\n")
    assert "--eval-images" in text and "--evaluation" not in text


def test_a_missing_option_is_named():
    with pytest.raises(UsageError, match="^missing required option: --images$"):
        parse()
