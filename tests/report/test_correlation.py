"""The page of `captune correlate`: its parts, and that names from outside stay text."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from captune.report.correlation import render


def score(value: float | None, **others: Any) -> dict[str, Any]:
    values = {"tau_c": value, "tau_b": 0.4, "spearman": 0.5, "pairwise_accuracy": 0.7}
    interval = {} if value is None else {"tau_c": [value - 0.02, value + 0.02]}
    own = {"scorer": "x", "label": "X", "values": values, "interval": interval, "categories": {}, "n": 90}
    return {**own, "negated": False, "signature": "x|1", "seconds": 1.0, **others}


def result(**others: Any) -> dict[str, Any]:
    test = {"a": "cider", "b": "length", "figure": "tau_c", "difference": 0.5, "interval": [0.4, 0.6],
            "p_value": 0.0, "p_holm": 0.0}  # fmt: skip
    made = {
        "judgements": "ExpertAnnotations.txt", "format": "flickr8k-expert", "kind": "ratings", "primary": "tau_c",
        "protocol": ["each grade is a judgement"], "read": 100, "used": 90, "captions": 30, "images": 10,
        "left_out": {"own captions": 10}, "problems": ["line 3: a byte"], "warnings": [],
        "scores": {"cider": score(0.44, scorer="cider", label="CIDEr-D"), "length": score(-0.1, scorer="length")},
        "tests": [test], "skipped": {}, "failed": {}, "bad_images": {},
        "published": [{"label": "CIDEr", "scorer": "cider", "figure": "tau_c", "value": 43.9, "source": "a paper"},
                      {"label": "SPICE", "scorer": "spice", "figure": "tau_c", "value": 44.9, "source": "a paper"}],
    }  # fmt: skip
    return made | others


def text_of(path: Path) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", re.sub(r"<style>.*?</style>", "", path.read_text(), flags=re.S)))


def test_ranking_tests_data_and_settings(tmp_path: Path) -> None:
    page = render(result(), tmp_path / "sub" / "page.html")
    text = text_of(page)
    assert "“cider” agrees best with people among the 2 measured here (tau-c 44.0), clearly above the next" in text
    assert text.index("SPICE published only") < text.index("cider CIDEr-D") < text.index("−10.00")
    assert "left out: 10 judgements: own captions" in text and "line 3: a byte" in text and "Published: a paper" in text
    assert "cider 50.0".replace(" ", "") in text.replace(" ", "")  # the test's difference
    html = page.read_text()
    assert "<script" not in html and "http" not in html.replace("http-equiv", "")


def test_what_is_missing_leaves_no_hole(tmp_path: Path) -> None:
    bare = result(published=[], tests=[], scores={"length": score(None, scorer="length")}, left_out={}, problems=[])
    text = text_of(render(bare, tmp_path / "p.html"))
    assert "No scorer has a figure here" in text and "Published" not in text and "None" not in text


def test_categories_and_failures(tmp_path: Path) -> None:
    parts = {"HC": {"value": 0.6, "n": 10}}
    made = result(
        scores={"cider": score(0.44, scorer="cider", categories=parts)}, failed={"meteor": "no Java"}, tests=[]
    )
    text = text_of(render(made, tmp_path / "p.html"))
    assert "HC right pairs" in text and "60.0" in text and "meteor failed: no Java" in text


def test_names_from_outside_are_escaped(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    made = result(
        judgements=evil, format=evil, problems=[evil], scores={evil: score(0.1, label=evil, signature=evil)}, tests=[]
    )
    assert "<script" not in render(made, tmp_path / "p.html", title=evil).read_text()
