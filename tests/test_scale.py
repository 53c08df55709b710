"""docs/scale.md holds the tables that benchmarks/scale/simulate.py prints, and its formulas agree with its draws."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.scale import simulate
from captune.inference.ray_engine import part_rows

DOC = Path(__file__).parents[1] / "docs" / "scale.md"


def test_the_page_holds_the_tables() -> None:
    found = dict(re.findall(r"<!-- (\w+) -->\n(.*?)\n<!-- end -->", DOC.read_text(encoding="utf-8"), re.DOTALL))
    assert found == simulate.page(simulate.Plan())


@pytest.mark.parametrize("part_seconds", [10.0, 600.0, 3600.0])
def test_simulated_losses_are_those_of_the_formula(part_seconds: float) -> None:
    plan = simulate.Plan()
    parts = int(2e7 / part_seconds)
    share, hours, lost = simulate.simulate(parts, part_seconds, 50, plan)
    assert share == pytest.approx(simulate.expected_loss(part_seconds, plan), abs=0.004)
    assert lost > 20
    assert hours > parts * part_seconds / 50 / 3600


def test_parts_are_as_the_engine_makes_them() -> None:
    assert [simulate.part_size(n) for n in (1e3, 1e6, 1e7, 1e9)] == [
        part_rows(int(n), 32) for n in (1e3, 1e6, 1e7, 1e9)
    ]
