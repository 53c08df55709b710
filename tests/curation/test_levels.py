"""`levels`: the bins of NoC by hand, and equal counts."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from curation_sets import run, write
from hypothesis import given, settings
from hypothesis import strategies as st

from captune.curation.levels import Levels, inner_edges
from captune.errors import CurationError, UsageError

WORDS = [1, 2, 2, 3, 3, 3, 4, 4, 9]


@pytest.fixture
def source(tmp_path: Path) -> str:
    return write(tmp_path / "set.jsonl", [["w " * n] for n in WORDS])


@pytest.mark.parametrize(
    ("settings", "edges", "levels"),
    [
        ({"bins": 4}, [3, 5, 7], [0, 0, 0, 1, 1, 1, 1, 1, 3]),
        ({"bins": 3, "equal": "count"}, [8 / 3, 10 / 3], [0, 0, 0, 1, 1, 1, 2, 2, 2]),
        ({"edges": [2, 4]}, [2, 4], [0, 1, 1, 1, 1, 1, 2, 2, 2]),
    ],
)
def test_by_hand(settings: dict[str, Any], edges: list[float], levels: list[int], source: str, tmp_path: Path) -> None:
    report, rows = run(source, tmp_path / "out", {"levels": {"by": "length", **settings}})
    assert [row["level"] for row in rows] == levels
    notes = report["records"][0]["notes"]
    assert notes["inner edges"] == pytest.approx(edges)
    assert notes["captions per level"] == np.bincount(levels).tolist()
    assert report["records"][0]["keep"] == len(WORDS)


def test_balance_keeps_as_many_of_each_level(tmp_path: Path) -> None:
    source = write(tmp_path / "set.jsonl", [["w " * n] for n in [1, 2, 2, 3, 1, 1, 9, 1, 1, 9, 1]])
    report, rows = run(source, tmp_path / "out", {"levels": {"by": "length", "bins": 4, "balance": True}})
    record = report["records"][0]
    assert record["notes"]["captions per level"] == [8, 1, 0, 2]  # before; an empty level takes no other along
    assert sorted(row["level"] for row in rows if row["verdict"] == "keep") == [0, 1, 3]
    assert record["reasons"] == {"drop: more of level 0 than of another": 7, "drop: more of level 3 than of another": 1}


@settings(max_examples=50, deadline=None, derandomize=True, database=None)
@given(st.lists(st.floats(-1e3, 1e3, allow_subnormal=False), min_size=2, max_size=40), st.integers(2, 9))
def test_uniform_bins_are_those_of_scikit_learn(values: list[float], bins: int) -> None:
    """KBinsDiscretizer(strategy="uniform"): edges by linspace, inner ones only, a value on an edge in the upper bin."""
    low, high = min(values), max(values)
    if high - low < 1e-6:
        return
    level = np.searchsorted(inner_edges(np.array(values), bins, "width"), values, side="right")
    for value, found in zip(values, level.tolist(), strict=True):
        place = (value - low) / (high - low) * bins
        if abs(place - round(place)) > 1e-9:  # on an edge the last bit decides
            assert found == min(bins - 1, math.floor(place))
    assert level[values.index(high)] == bins - 1 and level[values.index(low)] == 0


def test_scores_that_do_not_differ_have_no_levels(tmp_path: Path) -> None:
    source = write(tmp_path / "set.jsonl", [["a b"], ["c d"]])
    with pytest.raises(CurationError, match="all scores are 2: there is nothing to sort"):
        run(source, tmp_path / "out", {"levels": {"by": "length"}})
    source = write(tmp_path / "other.jsonl", [["a"]] * 9 + [["a b"]])
    with pytest.raises(CurationError, match="fewer bins, or equal width"):
        run(source, tmp_path / "out2", {"levels": {"by": "length", "equal": "count"}})


def test_the_level_is_not_called_as_the_score() -> None:
    with pytest.raises(UsageError, match="cannot be called 'score'"):
        Levels(by="length", column="score")


def test_edges_ascend() -> None:
    with pytest.raises(UsageError, match="ascend"):
        Levels(by="length", edges=(2.0, 1.0))


def test_no_level_of_equal_count_is_empty(tmp_path: Path) -> None:
    source = write(tmp_path / "set.jsonl", [["a", "b", "c", "d e"], ["f g h", "i j k l"]])
    with pytest.raises(CurationError, match=r"too many scores are equal for 3 levels of equal count \(4 differ\)"):
        run(source, tmp_path / "out", {"levels": {"by": "length", "equal": "count", "bins": 3}})
