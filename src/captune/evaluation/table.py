"""The result of an evaluation as text for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def table(result: Mapping[str, Any]) -> str:
    """The result of `captune.evaluation.run.evaluate_files` as aligned text.

    Args:
        result: the report; it has a line per figure, a column per caption file and intervals in brackets.
    """
    systems = [result, *result["others"]]
    lines = [["", *(str(s["captions"]) for s in systems)]]
    for spec, score in result["scores"].items():
        for key in score["values"]:
            cells = [_cell(s["scores"][spec], key) for s in systems]
            lines.append([key if key.startswith(spec) else f"{spec} {key}", *cells])
            if "paired" in systems[-1]:
                lines.append(
                    ["  difference to system 1", "", *(_difference(s["paired"][spec][key]) for s in systems[1:])]
                )
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    text = ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines]
    text += ["", f"{result['matched']} images; 95% intervals in brackets", *_corrected(systems), ""]
    text += [f"{spec}: {score['signature']}" for spec, score in result["scores"].items()]
    text += ["", *(f"not scored, {spec}: {why}" for spec, why in result["skipped"].items())] * bool(result["skipped"])
    return "\n".join(text)


def _corrected(systems: list[Mapping[str, Any]]) -> list[str]:
    if "paired" not in systems[-1]:
        return []
    return [
        "p: paired permutation test of the difference to system 1; p_holm: corrected (Holm) for all the tests shown"
    ]


def _cell(score: Mapping[str, Any], key: str) -> str:
    interval = score["interval"].get(key)
    return f"{score['values'][key]:.4f}" + (f" [{interval[0]:.4f}, {interval[1]:.4f}]" if interval else "")


def _difference(test: Mapping[str, Any]) -> str:
    interval, p = test["interval"], test["p_value"]
    if interval is None:
        return f"{test['difference']:+.4f}"
    tested = f"p = {p:.4f}, p_holm = {test['p_holm']:.4f}"
    return f"{test['difference']:+.4f} [{interval[0]:+.4f}, {interval[1]:+.4f}] {tested}"
