"""From the rows to results/tables.md: `python -m studies curation --tables`.

Share closed = (row - raw) / (references - raw), within each seed; means with 95% t intervals over seeds.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

from studies._lib.tables import Estimate, Record, Seeds, markdown, page

from .experiments import RAW, REFERENCES, ROWS

FIGURES = {"precision": "fact_precision", "recall": "fact_recall", "fact F1": "fact_f1", "CIDEr-D": "cider"}
INTRODUCTION = (
    "Made by `python -m studies curation --tables` from the rows. Means over seeds, 95% t intervals in brackets; a "
    "row of one seed has none."
)


def cell(values: Iterable[float | None]) -> str:
    found = Estimate.of([value for value in values if value is not None])
    return str(found) if found else "-"


def closed(row: float, raw: float, references: float) -> float | None:
    """The share of the gap from raw captions to references that a row closes; None where there is no gap."""
    return (row - raw) / (references - raw) if references != raw else None


def figure_table(seeds: Seeds, split: str) -> str:
    lines = []
    for row in seeds.rows:
        cells = [cell(seeds.over([row.name], split, key)) for key in FIGURES.values()]
        gaps = [cell(seeds.over([row.name, RAW, REFERENCES], split, key, closed)) for key in ("fact_f1", "cider")]
        lines.append([row.name, *cells, *gaps, str(len(seeds.of(row.name)))])
    return markdown(["", *FIGURES, "share closed, fact F1", "share closed, CIDEr-D", "seeds"], lines)


def noise_table(seeds: Seeds) -> str:
    """What is clean of the captions that a row came from, and what of it is kept."""
    lines = []
    for row in seeds.rows:
        found: list[dict[str, Any]] = [own["noise"] for own in seeds.of(row.name) if "noise" in own]
        if found:
            share = [own["clean"] / own["captions"] for own in found]
            figures = [cell(own.get(key) for own in found) for key in ("kept", "precision", "recall", "auc")]
            lines.append([row.name, f"{fmean(own['captions'] for own in found):.0f}", cell(share), *figures])
    return markdown(["", "captions", "clean", "kept", "precision", "recall", "AUC"], lines)


def level_table(seeds: Seeds) -> str:
    """Figures by the level that was asked for; whether fact F1 rises with each, seed by seed."""
    lines = []
    for row in seeds.rows:
        records = [own["levels"] for own in seeds.of(row.name) if "levels" in own]
        for level in range(row.levels if records else 0):
            cells = [cell(own[level]["test"][key] for own in records) for key in FIGURES.values()]
            lines.append([f"{row.name}, level {level}", *cells, ""])
        if records:
            series = [[level["test"]["fact_f1"] for level in own] for own in records]
            rising = sum(all(a < b for a, b in pairwise(own)) for own in series)
            lines[-1][-1] = f"{rising} of {len(series)}"
    return markdown(["asked for", *FIGURES, "seeds in which fact F1 rises with every level"], lines)


def write(records: Iterable[Record], results: Path) -> Path:
    """Writes what the rows give."""
    records = list(records)
    main, choices = (
        Seeds([own for own in records if own["section"] == section], ROWS[section]) for section in ("rows", "choices")
    )
    parts = []
    if main.rows:
        parts += [("Facts on test", figure_table(main, "test")), ("The known noise", noise_table(main))]
        if any("levels" in own for row in main.rows for own in main.of(row.name)):
            parts.append(("Levels on test", level_table(main)))
    if choices.rows:
        lines = [
            [row.name, *(cell(choices.over([row.name], "val", key)) for key in FIGURES.values())]
            for row in choices.rows
        ]
        parts.append(("Choices, on val", markdown(["", *FIGURES], lines)))
    return page("Tables of the curation study", INTRODUCTION, parts, results / "tables.md")
