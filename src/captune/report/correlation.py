"""The page of `captune correlate`: which scorers agree with people, as a ranking with intervals."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from captune.evaluation.human import FIGURES, ranking
from captune.report.page import asset, environment, write
from captune.utils.versions import command_line, versions

log = logging.getLogger(__name__)

_MEANING = {
    "tau_b": "Kendall's tau-b: how the order of scores goes with the order of ratings, ties in either taken out",
    "tau_c": "Kendall's tau-c (Stuart's), which allows for the ratings having few values",
    "spearman": "Spearman's rho: the correlation of the ranks",
    "pairwise_accuracy": "of two captions of one image, how often the one people prefer scores higher; 50 is chance",
    "agreement": "how often the verdict (first, second, tie) is the people's, with as many ties as people called",
}
_NAMES = {
    "flickr8k-expert": "Flickr8k-Expert",
    "flickr8k-crowdflower": "Flickr8k-CrowdFlower",
    "caparena": "CapArena",
    "foil": "FOIL",
    "pascal50s": "Pascal-50S",
}


def render(result: Mapping[str, Any], output: Path, *, title: str | None = None) -> Path:
    """Write a self-contained HTML page about a result of `captune.evaluation.human.correlate`; return its path.

    Args:
        result: the result.
        output: the HTML file to write (its folder is made when missing).
        title: the page's title; by default made from the name of the data.
    """
    name = _NAMES.get(result["format"], Path(result["judgements"]).name)
    rows = [_row(row, result) for row in ranking(result)]
    low, high = _span(rows)
    for row in rows:
        for key in ("low", "at", "high", "paper"):
            row[f"{key}_at"] = None if row[key] is None else round(100 * (row[key] - low) / (high - low), 1)
    values = next(iter(result["scores"].values()))["values"]
    others = [figure for figure in values if figure != result["primary"]]
    categories = sorted({part for own in result["scores"].values() for part in own["categories"]})
    html = (
        environment()
        .from_string(asset("correlation.html.j2"))
        .render(
            title=title or f"Scorers against people: {name}",
            name=name,
            sentence=_sentence(result),
            result=result,
            rows=rows,
            figure=FIGURES[result["primary"]],
            meanings={FIGURES[key]: _MEANING[key] for key in (result["primary"], *others)},
            others=[(key, FIGURES[key]) for key in others],
            categories=categories,
            zero=round(100 * (0 - low) / (high - low), 1) if low < 0 < high else None,
            tests=_matrix(result),
            sources=list(dict.fromkeys(row["source"] for row in result["published"])),
            command=command_line(),
            versions=versions(),
            style=Markup(asset("page.css") + asset("correlation.css")),
        )
    )
    return write(Path(output), html)


def _row(row: Mapping[str, Any], result: Mapping[str, Any]) -> dict[str, Any]:
    own, primary = row["own"], result["primary"]
    value = None if own is None else own["values"][primary]
    interval = None if own is None else own["interval"].get(primary)
    return {
        **row,
        "at": None if value is None else 100 * value,
        "low": 100 * interval[0] if interval else None,
        "high": 100 * interval[1] if interval else None,
        "paper": row["published"],
        "figures": {} if own is None else {key: _number(own["values"][key], 1) for key in own["values"]},
        "text": _number(value, 2),
        "interval": f"{_number(interval[0], 1)} to {_number(interval[1], 1)}" if interval else "",
    }


def _number(value: float | None, digits: int) -> str:
    """A figure x 100."""
    return "–" if value is None else f"{100 * value:.{digits}f}".replace("-", "−")


def _span(rows: list[dict[str, Any]]) -> tuple[float, float]:
    """Where the axis begins and ends; it holds 0."""
    ends = [row[key] for row in rows for key in ("low", "at", "high", "paper") if row[key] is not None]
    low, high = min([0.0, *ends]), max([0.0, *ends])
    return (low, high) if high > low else (low, low + 1)


def _sentence(result: Mapping[str, Any]) -> str:
    scores, primary = result["scores"], result["primary"]
    keys = [key for key, own in scores.items() if own["values"][primary] is not None]
    if not keys:
        return "No scorer has a figure here: all their scores are equal."
    best = keys[0]
    value = _number(scores[best]["values"][primary], 1)
    said = f"“{best}” agrees best with people among the {len(keys)} measured here ({FIGURES[primary]} {value})"
    if len(keys) == 1:
        return f"“{best}” has a {FIGURES[primary]} of {value} with people’s judgements."
    test = next((test for test in result["tests"] if test["a"] == best), None)  # the first is that of its neighbour
    if test is None:
        return f"{said}."
    clear = "clearly above" if test["p_holm"] < 0.05 else "not distinguishable from"
    return f"{said}, {clear} the next, “{test['b']}”."


def _matrix(result: Mapping[str, Any]) -> dict[str, Any] | None:
    """Row a, column b: the difference of the figure, its interval and whether it is more than chance."""
    if not result["tests"]:
        return None
    keys = [key for key, own in result["scores"].items() if key == own["scorer"]]
    found = {(test["a"], test["b"]): test for test in result["tests"]}
    lines = []
    for i, a in enumerate(keys[:-1]):
        cells: list[dict[str, Any] | None] = []
        for j, b in enumerate(keys[1:], start=1):
            test = found.get((a, b)) if j > i else None
            cells.append(
                None
                if test is None
                else {
                    "text": _number(test["difference"], 1),
                    "title": f"{a} less {b}: {_number(test['interval'][0], 1)} to {_number(test['interval'][1], 1)}, "
                    f"p = {test['p_value']:.4f}, corrected {test['p_holm']:.4f}",
                    "more": test["p_holm"] < 0.05,
                }
            )
        lines.append((a, cells))
    return {"columns": keys[1:], "lines": lines}
