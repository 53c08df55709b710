from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from captune.errors import ScorerError
from captune.evaluation.cache import Cache
from captune.scorers import Scorer, load_scorer
from captune.utils import progress


class Costly(Scorer):
    """Counts what it is asked, and breaks where told."""

    name = "costly"
    required_columns = ("image", "references")
    cached = True

    def __init__(self, weights: str = "w1", breaks_at: str = "") -> None:
        self.weights, self.breaks_at, self.asked = weights, breaks_at, []

    def rows(self, captions, *, image, references, **columns):
        if self.breaks_at in captions:
            raise ScorerError("the judge went away")
        self.asked += captions
        return np.array([[len(c), i.size[0], len(r)] for c, i, r in zip(captions, image, references, strict=True)])

    @property
    def signature(self):
        return f"costly|model:{self.weights}|truncated:{len(self.asked)}%"


def columns(n: int, colour: str = "red") -> dict:
    return {"image": [Image.new("RGB", (4 + i % 3, 4), colour) for i in range(n)], "references": [["r"]] * n}


def judge(tmp_path: Path, captions: list[str], colour: str = "red", **settings) -> tuple[np.ndarray, list[str]]:
    scorer = Costly(**settings)
    scorer.cache = Cache(tmp_path)
    return scorer.measure(captions, columns(len(captions), colour)), scorer.asked


CAPTIONS = [f"caption {i}" for i in range(6)]


def test_what_is_known_is_not_computed_again(tmp_path: Path) -> None:
    first, asked = judge(tmp_path, CAPTIONS)
    assert asked == CAPTIONS
    again, asked = judge(tmp_path, CAPTIONS)
    assert asked == []
    np.testing.assert_array_equal(first, again)
    more, asked = judge(tmp_path, [*CAPTIONS, "new"])
    assert asked == ["new"]
    np.testing.assert_array_equal(more[:6], first)


def test_a_log_says_how_far_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "EVERY", 1e-6)
    monkeypatch.setattr(Costly, "kept_every", 2)
    judge(tmp_path, CAPTIONS)
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if "costly:" in line and "4/6" in line and "<" in line]


def test_everything_that_a_row_depends_on_is_in_its_key(tmp_path: Path) -> None:
    judge(tmp_path, CAPTIONS)
    assert judge(tmp_path, CAPTIONS, weights="w2")[1] == CAPTIONS
    assert judge(tmp_path, CAPTIONS, colour="blue")[1] == CAPTIONS
    scorer = Costly()
    scorer.cache = Cache(tmp_path)
    scorer.measure(CAPTIONS, {**columns(6), "references": [["other"]] * 6})
    assert scorer.asked == CAPTIONS


def test_equal_captions_of_equal_images_are_judged_once(tmp_path: Path) -> None:
    rows, asked = judge(tmp_path, ["same"] * 6)  # images repeat after three
    assert asked == ["same"] * 3
    np.testing.assert_array_equal(rows[:3], rows[3:])


def test_a_scorer_that_breaks_keeps_what_it_had_done(tmp_path: Path) -> None:
    captions = [f"caption {i}" for i in range(300)]
    with pytest.raises(ScorerError):
        judge(tmp_path, captions, breaks_at="caption 290")
    _, asked = judge(tmp_path, captions)
    assert asked == captions[256:]  # written every 128 rows


@pytest.mark.parametrize("cut", [1, 20])
def test_a_torn_last_line_is_made_again(tmp_path: Path, cut: int, caplog: pytest.LogCaptureFixture) -> None:
    first, _ = judge(tmp_path, CAPTIONS)
    file = next(tmp_path.glob("*.jsonl"))
    file.write_bytes(file.read_bytes()[:-cut])
    again, asked = judge(tmp_path, CAPTIONS)
    np.testing.assert_array_equal(first, again)
    assert asked == (CAPTIONS[-1:] if cut > 1 else [])
    assert ("torn" in caplog.text) == (cut > 1)
    assert judge(tmp_path, [*CAPTIONS, "new"])[1] == ["new"]
    assert judge(tmp_path, [*CAPTIONS, "new"])[1] == []  # what was appended after the torn line is read


def test_a_cheap_scorer_is_not_kept(tmp_path: Path) -> None:
    load_scorer("length", cache=Cache(tmp_path)).measure(CAPTIONS, {})
    assert not list(tmp_path.iterdir())


def test_the_parts_of_a_sum_are_kept(tmp_path: Path) -> None:
    both = load_scorer("length + 2*rouge", cache=Cache(tmp_path))
    assert all(part.cache is both.parts[0][0].cache is not None for part, _ in both.parts)
