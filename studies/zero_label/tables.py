"""From the rows' files to results/tables.md: means over seeds, shares of the gap, and what holds of the claims.

    share of the gap = (row - base) / (supervised - base)       on the same images, with the same seed and budget

Intervals are 95% t intervals over seeds. A seed has its own training and its own test images, so they cover both.
Made by `python -m studies zero_label --tables`; nothing is run.
"""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

from studies._lib.rows import shared
from studies._lib.store import Store
from studies._lib.tables import ROLES, Estimate, Seeds, markdown, page

from .experiments import BASE, BUDGET, ROWS, SUPERVISED, Contender

TITLES = {"test": "in distribution", "ood": "out of distribution"}
GAPS = {"CIDEr-D": "cider", "fact F1": "fact_f1"}
FACTS = {"facts": "fact_f1", "relations": "relation_f1", "sub-kinds": "subkind_f1"}
FALSE = "hallucinated_per_fact"
COLUMNS = shared(Path(__file__).with_name("experiments.yaml"), "columns")

INTRODUCTION = (
    "Made by `python -m studies zero_label --tables`. Means over the seeds {seeds}; in brackets 95% t intervals "
    "over seeds, each with its own test images, not corrected for the number of comparisons. *yes* and *no*: the whole "
    "interval is on one side of the bound; *open*: it is not. Rows with several budgets are compared with supervision "
    "of as many."
)


class Results(Seeds):
    """The records of finished rows, by name and seed."""

    def gap(self, row: Contender, split: str, key: str) -> Estimate | None:
        """The share of the gap from base to supervision of the same budget."""
        return self.share(row.name, BASE, ceiling(row), split, key)

    def beyond(self, row: Contender, split: str, key: str) -> Estimate | None:
        """The row's figure minus that of supervision."""
        return self.more(row.name, ceiling(row), split, key)


def ceiling(row: Contender) -> str:
    """The supervised row of the same budget; for supervision itself that of one budget."""
    return SUPERVISED if row.budget == 1 or row.kind == "sft" else f"{SUPERVISED}, {row.budget} budgets"


def scores_table(results: Results, split: str) -> str:
    lines = []
    for row in results.rows:
        cells = []
        for keys, digits in COLUMNS.values():
            means = [results.mean(row.name, split, key) for key in keys]
            cells.append(" / ".join("-" if mean is None else f"{mean.mean:.{digits}f}" for mean in means))
        gaps = [str(results.gap(row, split, key) or "-") if row.name != BASE else "0" for key in GAPS.values()]
        lines.append([row.name, ROLES.get(row.role, row.role), *cells, *gaps])
    return markdown(["", "", *COLUMNS, *(f"share of the {name} gap" for name in GAPS)], lines)


def claim_table(results: Results) -> str:
    """The claim: 95% of the gap, with no more hallucination, in and out of distribution."""
    lines = []
    for row in results.rows:
        if row.role not in ("zero", "outside", "oracle"):
            continue
        cells = []
        for split in TITLES:
            for key in GAPS.values():
                gap = results.gap(row, split, key)
                cells.append("-" if gap is None else f"{gap} {gap.above(0.95)}")
            more = results.beyond(row, split, FALSE)
            cells.append("-" if more is None else f"{more} {(-more).above(0)}")
        lines.append([row.name, ROLES[row.role], *cells])
    head = [f"{what}, {split}" for split in TITLES for what in ("CIDEr-D >= 0.95", "fact F1 >= 0.95", "no more false")]
    return markdown(["", "", *head], lines)


def beyond_table(results: Results) -> str:
    """Whether a row exceeds supervision on what can be checked exactly."""
    lines = []
    for row in results.rows:
        if row.trains and row.role != "control" and row.name != ceiling(row):
            cells = []
            for split in TITLES:
                for key in FACTS.values():
                    more = results.beyond(row, split, key)
                    cells.append("-" if more is None else f"{more} {more.above(0)}")
            lines.append([row.name, ROLES.get(row.role, row.role), *cells])
    return markdown(["", "", *(f"{name}, {split}" for split in TITLES for name in FACTS)], lines)


def cost_table(results: Results) -> str:
    lines = []
    for row in results.rows:
        records = results.of(row.name)
        if row.trains:
            seconds = [fmean(record["seconds"][part] for record in records) for part in ("preparing", "training")]
            steps = records[-1]["steps"]
            shown = [str(steps[0])] if row.kind == "sft" else [f"{steps[0]} + " * bool(steps[0]) + str(steps[1])]
            lines.append([row.name, str(row.budget * BUDGET), str(row.rounds), *shown, *(f"{s:.0f}" for s in seconds)])
    return markdown(["", "budget, s", "rounds", "steps of a round", "preparing, s", "training, s"], lines)


def choice_table(results: Results) -> str:
    lines = []
    for row in results.rows:
        means = [results.mean(row.name, "val", key) for key in ("cider", "fact_f1", FALSE, "length", "repetition")]
        steps = results.of(row.name)[0]["steps"][1]
        lines.append([row.name, str(steps), *("-" if mean is None else f"{mean.mean:.3f}" for mean in means)])
    return markdown(["", "steps", "CIDEr-D", "fact F1", "false / stated", "length", "repetition"], lines)


def write(results: Results, chosen: Results, file: Path) -> Path:
    parts = [
        ("The claim: 95% of the gap that references close, no more false facts", claim_table(results)),
        ("Beyond supervision: F1 minus that of supervision", beyond_table(results)),
        *((f"All rows, {title}", scores_table(results, split)) for split, title in TITLES.items()),
        ("Time and steps", cost_table(results)),
    ]
    if chosen.rows:
        parts.append(("Choices, on val, another base", choice_table(chosen)))
    introduction = INTRODUCTION.format(seeds=", ".join(map(str, results.seeds)))
    return page("Tables of the zero-label study", introduction, parts, file)


def read_all(folder: Path) -> tuple[Results, Results]:
    """(the study's results, those of its choices)"""
    results, chosen = (Results(Store(folder, [section]).rows, ROWS[section]) for section in ("rows", "choices"))
    return results, chosen
