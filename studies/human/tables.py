"""results/*.json -> results/tables.md: the scorers by their agreement with people, published rows between them.

Made by `python -m studies human --tables`; nothing is run.
"""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

from captune.evaluation.human import ranking
from studies._lib.tables import markdown, page

from .experiments import ON_ALL

HEADINGS = {"tau_c": "tau-c", "tau_b": "tau-b", "spearman": "Spearman", "pairwise_accuracy": "right pairs"}


def cell(own: dict[str, Any] | None, figure: str) -> str:
    """A figure x 100 with its interval."""
    if own is None or own["values"][figure] is None:
        return ""
    text, interval = f"{100 * own['values'][figure]:.1f}", own["interval"].get(figure)
    return text + (f" [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]" if interval else "")


def scores(result: dict[str, Any]) -> str:
    lines = []
    people = {"mean": "the three experts' mean against each of them", "one": "one expert against the other two"}
    rows = [
        {"key": text, "label": "", "own": result["experts"][key], "published": None} for key, text in people.items()
    ]
    for row in [*rows, *ranking(result)]:
        own, paper, everywhere = row["own"], row["published"], ON_ALL.get(row["key"])
        known = [f"{value:g}" if value is not None else "" for value in (paper, everywhere)]
        name = f"`{row['key']}`" if own is not None and row["label"] else row["key"]
        lines.append([name, cell(own, "tau_c"), *known, *(cell(own, key) for key in list(HEADINGS)[1:])])
    head = ["", "tau-c", "published", "captune, all captions", *list(HEADINGS.values())[1:]]
    return markdown(head, lines, align="---")


def tests(result: dict[str, Any]) -> str:
    """Each primary row against the next."""
    primary = [key for key, own in result["scores"].items() if key == own["scorer"]]
    found = {(test["a"], test["b"]): test for test in result["tests"]}
    lines = []
    for a, b in pairwise(primary):
        if (test := found.get((a, b))) is not None:
            low, high = test["interval"]
            p = "<0.0001" if test["p_holm"] < 0.0001 else f"{test['p_holm']:.4f}"
            cells = [f"{100 * test['difference']:.1f} [{100 * low:.1f}, {100 * high:.1f}]", p]
            lines.append([f"`{a}` less `{b}`", *cells])
    return markdown(["", "tau-c x 100", "p (Holm)"], lines, align="---")


def write(results: Path) -> Path:
    parts = []
    for file in sorted(results.glob("*.json")):
        result = json.loads(file.read_text(encoding="utf-8"))
        left = "; ".join(f"{count:,} left out: {reason}" for reason, count in result["left_out"].items())
        counts = (
            f"{result['used']:,} of {result['read']:,} judgements ({left}), {result['captions']:,} captions of "
            f"{result['images']:,} images. Figures x 100, 95% intervals over images."
        )
        signatures = [f"- `{k}`: `{own['signature']}`" for k, own in result["scores"].items() if k == own["scorer"]]
        failed = [f"- not scored, `{spec}`: {why}" for spec, why in result["failed"].items()]
        made = f"Made {result['finished'][:10]} by `{result['command']}`, commit {result['versions']['git_commit']}."
        text = [counts, "", scores(result), "", tests(result), "", *signatures, *failed, "", made]
        parts.append((result["format"], "\n".join(text)))
    introduction = "Written by `python -m studies human --tables`; do not edit."
    return page("Tables of the study of scorers against people", introduction, parts, results / "tables.md")
