"""Steps as they are written, and what every operation has."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from captune.curation import OPERATIONS, read_steps
from captune.curation.registry import SUMMARIES
from captune.errors import UsageError


def test_every_operation_is_described_by_its_own_words() -> None:
    assert list(SUMMARIES) == list(OPERATIONS.builtin)
    for name, summary in SUMMARIES.items():
        kind = OPERATIONS[name]
        assert kind.__doc__.splitlines()[0] == summary
        assert kind.example.startswith(f"captune curate {name} ")


def test_steps_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "steps.yaml"
    file.write_text("- filter: {by: clip - 0.1*length, keep: 0.3}\n- dedup\n- levels: {by: clip, edges: [0.1, 0.2]}\n")
    steps = read_steps(file)
    assert [name for name, _ in steps] == ["filter", "dedup", "levels"]
    assert steps[0][1].keep == 0.3 and steps[2][1].edges == (0.1, 0.2)
    assert steps == read_steps(
        [("filter", steps[0][1]), {"dedup": None}, ("levels", {"by": "clip", "edges": [0.1, 0.2]})]
    )


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "must hold a list of steps"),
        ("filter: {by: clip}", "must hold a list of steps"),
        ("- fliter: {by: clip}", "step 1: unknown operation 'fliter'; did you mean 'filter'"),
        ("- dedup\n- filter: {by: clip, kep: 0.3}", "step 2: filter: unknown setting 'kep'; did you mean 'keep'"),
        ("- filter: {by: clip, keep: 3}", "step 1: filter: keep: 3 must be at most 1"),
        ("- filter: {by: clip, keep: much}", "keep: 'much' is not a number"),
        ("- filter: {keep: 0.3}", "step 1: filter needs by"),
        ("- filter: 0.3", "takes settings"),
        ("- 3", "is no step"),
        ("- filter: {by: clip, keep: 0.3, keep: 0.4}", "'keep' stands twice"),
        ("- filter: {by: nonsense, keep: 0.3}", "step 1: filter: unknown scorer 'nonsense'"),
        ("- levels: {by: 'clip +', bins: 8}", "levels: a scorer is missing here"),
    ],
)
def test_refused(text: str, match: str, tmp_path: Path) -> None:
    file = tmp_path / "steps.yaml"
    file.write_text(text)
    with pytest.raises(UsageError, match=match):
        read_steps(file)


def test_steps_are_checked_before_anything_heavy() -> None:
    code = (
        "import sys\n"
        "from captune.cli.main import main\n"
        "code = main(['curate', 'filter', '.', '--by', 'clpi', '--keep', '.3', '--output', 'nowhere-too'])\n"
        "assert code == 2 and not {'torch', 'datasets'} & sys.modules.keys()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "did you mean 'clip'" in done.stderr
