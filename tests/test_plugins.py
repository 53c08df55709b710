"""Scorers, decoders and methods from elsewhere: by an installed package's entry points, and from a file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

from captune.errors import ScorerError, UnknownScorer
from captune.scorers import direction, from_function, label, load_reward, load_scorer

PACKAGE = Path(__file__).with_name("plugin_package")
FILE = '''
from captune.scorers import Scorer

class Words(Scorer):
    """Words of a caption."""
    def __init__(self, argument=None):
        self.least = int(argument or 0)
    def rows(self, captions, **columns):
        import numpy as np
        return np.array([[max(self.least, len(c.split()))] for c in captions], dtype=float)

def brevity(completions, **columns):
    return [-float(len(c.split())) for c in completions]

def overlap(completions, references, **columns):
    return [None if not r else float(len(set(c.split()) & set(r[0].split()))) for c, r in zip(completions, references)]

NUMBER = 7
'''


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The package as pip would lay it there: the module, and the metadata's entry points."""
    about = tomllib.loads((PACKAGE / "pyproject.toml").read_text())["project"]
    (tmp_path / "captune_plugin.py").write_text((PACKAGE / "captune_plugin.py").read_text())
    info = tmp_path / f"captune_plugin-{about['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {about['name']}\nVersion: {about['version']}\n")
    points = about["entry-points"]
    lines = [line for group in points for line in (f"[{group}]", *(f"{k} = {v}" for k, v in points[group].items()))]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_a_package_adds_names_without_touching_captune(installed: Path) -> None:
    program = """
import json
from captune.decoding import load_decoder
from captune.scorers import describe, direction, group_of, load_scorer, load_reward
class Captioner:
    def generate(self, images, **settings):
        return ["a dog"] * len(images)
print(json.dumps([
    load_scorer("brevity")(["a dog", "one two three four five six seven"]),
    load_reward("length + 2*brevity")(["one two three four five six"]),
    direction("brevity"), group_of("brevity"), "brevity" in [about.name for about in describe()],
    load_decoder("shout:3")(Captioner(), [1]),
]))
"""
    path = os.pathsep.join([str(installed), *filter(None, sys.path)])
    done = subprocess.run([sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": path}, capture_output=True,
                          text=True, check=True)  # fmt: skip
    assert json.loads(done.stdout.splitlines()[-1]) == [[0.0, -2.0], [4.0], True, "text", True, ["A DOG!!!"]]


def test_a_scorer_takes_at_most_25_lines() -> None:
    text = (PACKAGE / "captune_plugin.py").read_text()
    lines = text[text.index("class Brevity") : text.index("@dataclass")].splitlines()
    assert len([line for line in lines if line.strip()]) + 5 <= 25  # and its imports


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "my-rewards.py"
    path.write_text(FILE)
    return path


def test_a_class_of_a_file_is_a_scorer(file: Path) -> None:
    scorer = load_scorer(f"{file}:Words")
    assert scorer(["a dog", ""]) == [2, 0] and load_scorer(f"{file}:Words:1")(["a dog", ""]) == [2, 1]
    assert scorer.corpus(scorer.rows(["a dog", ""])) == {"Words": 1.0}


def test_a_reward_function_of_a_file_is_a_scorer(file: Path) -> None:
    scorer = load_scorer(f"{file}:brevity")
    assert scorer(["a dog", ""]) == [-2, 0] and scorer.required_columns == ()
    assert scorer.corpus(scorer.rows(["a dog", ""])) == {"brevity": -1.0, "judged": 1.0}
    assert direction(f"{file}:brevity") is True and label(scorer, "brevity") == "brevity"
    before = scorer.signature
    file.write_text(FILE.replace("-float", "-2 * float"))
    changed = load_scorer(f"{file}:brevity")
    assert changed(["a dog"]) == [-4] and changed.signature != before and before.startswith("function:brevity@")


def test_parameters_of_a_function_are_the_columns_that_it_needs(file: Path) -> None:
    scorer = load_scorer(f"{file}:overlap")
    assert scorer.required_columns == ("references",)
    np.testing.assert_equal(scorer(["a dog", "x"], references=[["the dog"], []]), [1.0, np.nan])
    assert load_reward(f"length - 0.5*{file}:overlap")(["a dog"], references=[["a dog"]]) == [1.0]


def test_a_function_of_the_session_is_a_scorer() -> None:
    def vowels(completions: list[str], **columns: object) -> list[float]:
        return [float(sum(letter in "aeiou" for letter in text)) for text in completions]

    assert from_function(vowels)()(["a dog"]) == [2.0]


def test_what_is_no_scorer_is_refused(file: Path, tmp_path: Path) -> None:
    for spec, why in (("NUMBER", "is neither a subclass"), ("brevty", "did you mean 'brevity'")):
        with pytest.raises(UnknownScorer, match=why):
            load_scorer(f"{file}:{spec}")
    with pytest.raises(UnknownScorer, match="there is no file"):
        load_scorer(f"{tmp_path}/none.py:x")
    (tmp_path / "broken.py").write_text("1 / 0")
    with pytest.raises(ScorerError, match="fails when it is run: ZeroDivisionError"):
        load_scorer(f"{tmp_path}/broken.py:x")
