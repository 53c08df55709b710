"""From the rows' files to tables: means over seeds, shares of the gap, and what holds of the claims. Nothing is run.

    share of the gap = (row - base) / (supervised - base)       on the same images, with the same seed and budget

Intervals are 95% t intervals over seeds. A seed has its own training and its own test images, so they cover both.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from contenders import BASE, BUDGET, SUPERVISED, Row, choices, rows

from captune.evaluation.statistics import Estimate

SPLITS = {"test": "in distribution", "ood": "out of distribution"}
GAPS = {"CIDEr-D": "cider", "fact F1": "fact_f1"}
FACTS = {"facts": "fact_f1", "relations": "relation_f1", "sub-kinds": "subkind_f1"}
FALSE = "hallucinated_per_fact"
COLUMNS = {  # heading -> (figures, digits)
    "CIDEr-D": (("cider",), 2),
    "facts P / R / F1": (("fact_precision", "fact_recall", "fact_f1"), 3),
    "relations P / R / F1": (("relation_precision", "relation_recall", "relation_f1"), 2),
    "sub-kinds P / R / F1": (("subkind_precision", "subkind_recall", "subkind_f1"), 2),
    "false / stated": ((FALSE,), 3),
    "CLIPScore": (("clip",), 3),
    "length": (("length",), 1),
    "repetition": (("repetition",), 3),
    "vocabulary": (("vocabulary",), 0),
}
ROLES = {"zero": "zero-label", "outside": "zero-label, outside judge", "oracle": "truth as the reward"}

INTRODUCTION = (
    "Made by `python studies/zero-label/run.py --tables`. Means over the seeds {seeds}; in brackets 95% t intervals "
    "over seeds, each with its own test images, not corrected for the number of comparisons. *yes* and *no*: the whole "
    "interval is on one side of the bound; *open*: it is not. Rows with several budgets are compared with supervision "
    "of as many."
)


class Results:
    """The records of finished rows, by name and seed."""

    def __init__(self, records: Iterable[dict[str, Any]], specs: Sequence[Row]) -> None:
        known = {row.name: row for row in specs}
        self.records = {(r["name"], r["seed"]): r for r in records if r["name"] in known}
        self.rows = [row for row in specs if any(name == row.name for name, _ in self.records)]
        self.seeds = sorted({seed for _, seed in self.records})

    @classmethod
    def read(cls, folder: Path, specs: Sequence[Row]) -> Results:
        return cls((json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))), specs)

    def figure(self, name: str, seed: int, split: str, key: str) -> float | None:
        return self.records.get((name, seed), {}).get("scores", {}).get(split, {}).get(key)

    def over_seeds(self, names: Sequence[str], split: str, key: str, f: Callable[..., float | None]) -> list[float]:
        """f of the rows' figures on each seed where all of them are there, and f has a value."""
        found = ([self.figure(name, seed, split, key) for name in names] for seed in self.seeds)
        values = (f(*own) for own in found if None not in own)
        return [value for value in values if value is not None]

    def mean(self, row: Row, split: str, key: str) -> Estimate | None:
        return Estimate.of(self.over_seeds([row.name], split, key, float))

    def gap(self, row: Row, split: str, key: str) -> Estimate | None:
        def share(value: float, low: float, high: float) -> float | None:
            return (value - low) / (high - low) if high != low else None

        return Estimate.of(self.over_seeds([row.name, BASE, ceiling(row)], split, key, share))

    def beyond(self, row: Row, split: str, key: str) -> Estimate | None:
        """The row's figure minus that of supervision."""
        return Estimate.of(self.over_seeds([row.name, ceiling(row)], split, key, lambda own, other: own - other))


def ceiling(row: Row) -> str:
    """The supervised row of the same budget; for supervision itself that of one budget."""
    return SUPERVISED if row.budget == 1 or row.kind == "sft" else f"{SUPERVISED}, {row.budget} budgets"


def markdown(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    table = [head, ["---"] + ["---:"] * (len(head) - 1), *lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in table)


def text(estimate: Estimate | None) -> str:
    return "-" if estimate is None else str(estimate)


def scores_table(results: Results, split: str) -> str:
    lines = []
    for row in results.rows:
        cells = []
        for keys, digits in COLUMNS.values():
            means = [results.mean(row, split, key) for key in keys]
            cells.append(" / ".join("-" if mean is None else f"{mean.mean:.{digits}f}" for mean in means))
        gaps = [text(results.gap(row, split, key)) if row.name != BASE else "0" for key in GAPS.values()]
        lines.append([row.name, ROLES.get(row.role, row.role), *cells, *gaps])
    return markdown(["", "", *COLUMNS, *(f"share of the {name} gap" for name in GAPS)], lines)


def claim_table(results: Results) -> str:
    """The claim: 95% of the gap, with no more hallucination, in and out of distribution."""
    lines = []
    for row in results.rows:
        if row.role not in ("zero", "outside", "oracle"):
            continue
        cells = []
        for split in SPLITS:
            for key in GAPS.values():
                gap = results.gap(row, split, key)
                cells.append("-" if gap is None else f"{gap} {gap.above(0.95)}")
            more = results.beyond(row, split, FALSE)
            less = more and Estimate(-more.mean, *(v and -v for v in (more.high, more.low)))
            cells.append("-" if more is None or less is None else f"{more} {less.above(0)}")
        lines.append([row.name, ROLES[row.role], *cells])
    head = [f"{what}, {split}" for split in SPLITS for what in ("CIDEr-D >= 0.95", "fact F1 >= 0.95", "no more false")]
    return markdown(["", "", *head], lines)


def beyond_table(results: Results) -> str:
    """Whether a row exceeds supervision on what can be checked exactly."""
    lines = []
    for row in results.rows:
        if row.trains and row.role != "control" and row.name != ceiling(row):
            cells = []
            for split in SPLITS:
                for key in FACTS.values():
                    more = results.beyond(row, split, key)
                    cells.append("-" if more is None else f"{more} {more.above(0)}")
            lines.append([row.name, ROLES.get(row.role, row.role), *cells])
    return markdown(["", "", *(f"{name}, {split}" for split in SPLITS for name in FACTS)], lines)


def cost_table(results: Results) -> str:
    lines = []
    for row in results.rows:
        own = [results.records[name, seed] for name, seed in results.records if name == row.name]
        if row.trains:
            seconds = [fmean(record["seconds"][part] for record in own) for part in ("preparing", "training")]
            steps = own[-1]["steps"]
            said = [str(steps[0])] if row.kind == "sft" else [f"{steps[0]} + " * bool(steps[0]) + str(steps[1])]
            lines.append([row.name, str(row.budget * BUDGET), str(row.rounds), *said, *(f"{s:.0f}" for s in seconds)])
    return markdown(["", "budget, s", "rounds", "steps of a round", "preparing, s", "training, s"], lines)


def choice_table(results: Results) -> str:
    lines = []
    for row in results.rows:
        means = [results.mean(row, "val", key) for key in ("cider", "fact_f1", FALSE, "length", "repetition")]
        steps = next(record["steps"][1] for (name, _), record in results.records.items() if name == row.name)
        lines.append([row.name, str(steps), *("-" if mean is None else f"{mean.mean:.3f}" for mean in means)])
    return markdown(["", "steps", "CIDEr-D", "fact F1", "false / stated", "length", "repetition"], lines)


def write(results: Results, chosen: Results, file: Path) -> Path:
    seeds = ", ".join(map(str, results.seeds))
    parts = ["# Tables of the zero-label study", "", INTRODUCTION.format(seeds=seeds)]
    parts += ["", "## The claim: 95% of the gap that references close, no more false facts", "", claim_table(results)]
    parts += ["", "## Beyond supervision: F1 minus that of supervision", "", beyond_table(results)]
    for split, title in SPLITS.items():
        parts += ["", f"## All rows, {title}", "", scores_table(results, split)]
    parts += ["", "## Time and steps", "", cost_table(results)]
    if chosen.rows:
        parts += ["", "## Choices, on val, another base", "", choice_table(chosen)]
    file.write_text("\n".join(parts) + "\n")
    return file


def read_all(folder: Path) -> tuple[Results, Results]:
    """(the study's results, those of its choices)"""
    return Results.read(folder / "rows", list(rows())), Results.read(folder / "choices", list(choices()))
