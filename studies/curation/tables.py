"""From the rows to results/tables.md: `python -m studies curation --tables`.

Share closed = (row - raw) / (references - raw), within each seed; means with 95% t intervals over seeds.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

from studies._lib.tables import Estimate, Record, Seeds, markdown, page

from .experiments import RAW, REFERENCES, ROWS, Set

FIGURES = {
    "precision": "fact_precision",
    "recall": "fact_recall",
    "fact F1": "fact_f1",
    "CIDEr-D": "cider",
    "boilerplate": "boilerplate",
}
OF_SET = {"clean": "clean", "precision": "fact_precision", "recall": "fact_recall", "fact F1": "fact_f1"}
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


def by_round(records: Iterable[Record], rows: Sequence[Set]) -> Seeds:
    """The records of a section, each round of a row as a row of its own."""
    lines = [replace(row, name=own["name"]) for row in rows for own in row.sets]
    rounds = [{**record, **own} for record in records for own in record.get("sets", [record])]
    return Seeds(rounds, lines)


def figure_table(seeds: Seeds, split: str) -> str:
    lines = []
    for row in seeds.rows:
        cells = [cell(seeds.over([row.name], split, key)) for key in FIGURES.values()]
        gaps = [cell(seeds.over([row.name, RAW, REFERENCES], split, key, closed)) for key in ("fact_f1", "cider")]
        lines.append([row.name, *cells, *gaps, str(len(seeds.of(row.name)))])
    return markdown(["", *FIGURES, "share closed, fact F1", "share closed, CIDEr-D", "seeds"], lines)


def set_table(seeds: Seeds) -> str:
    """What the captions are that were trained on, and what that took."""
    lines = []
    for row in seeds.rows:
        found: list[dict[str, Any]] = [own for own in seeds.of(row.name) if "set" in own]
        if found:
            facts = [cell(own["set"][key] for own in found) for key in OF_SET.values()]
            costs = [cell(own.get(key) for own in found) for key in ("auc", "curation_seconds", "training_seconds")]
            captions = f"{fmean(own['set']['captions'] for own in found):.0f}"
            lines.append([row.name, captions, *facts, *costs])
    return markdown(["", "captions", *OF_SET, "AUC", "seconds to curate", "seconds to train"], lines)


def level_table(seeds: Seeds) -> str:
    """Figures by the level that was asked for; whether they rise with each, seed by seed."""
    keys = {**FIGURES, "CLIPScore": "clip"}
    lines = []
    for row in seeds.rows:
        records = [own["levels"] for own in seeds.of(row.name) if "levels" in own]
        for level in range(row.levels if records else 0):
            lines.append(
                [f"{row.name}: {level}", *(cell(own[level]["test"][key] for own in records) for key in keys.values())]
            )
        if records:
            rising = (
                sum(all(a["test"][key] < b["test"][key] for a, b in pairwise(own)) for own in records)
                for key in keys.values()
            )
            lines.append(
                [f"{row.name}: seeds in which it rises with every level", *(f"{n} of {len(records)}" for n in rising)]
            )
    return markdown(["asked for", *keys], lines)


def wrong_table(seeds: Seeds) -> str:
    """How scorers find captions of other images."""
    lines = []
    for row in seeds.rows:
        found = seeds.of(row.name)
        figures = [cell(own[key] for own in found) for key in ("auc", "precision", "recall", "seconds_judging")]
        lines.append([row.name, f"{fmean(own['wrong'] for own in found):.0f}", *figures, str(len(found))])
    return markdown(["", "of other images", "AUC", "precision", "recall", "seconds", "seeds"], lines)


def write(records: Iterable[Record], results: Path) -> Path:
    """Writes what the rows give."""
    records = list(records)
    of = {section: [own for own in records if own["section"] == section] for section in ROWS}
    main, levels = (by_round(of[name], ROWS[name]) for name in ("rows", "levels"))
    judged = Seeds(of["wrong"], ROWS["wrong"])
    parts = []
    if main.rows:
        parts += [("Facts on test", figure_table(main, "test")), ("What was trained on", set_table(main))]
    if levels.rows:
        parts.append(("Levels on test", level_table(levels)))
    if judged.rows:
        parts.append(("Captions of other images", wrong_table(judged)))
    return page("Tables of the curation study", INTRODUCTION, parts, results / "tables.md")
