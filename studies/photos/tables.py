"""From the rows' files to results/tables.md: `python -m studies photos --tables`."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean, median

from studies._lib.rows import shared
from studies._lib.store import Store
from studies._lib.tables import Seeds, markdown, page, spread

from .experiments import BAR, ROWS

COLUMNS = shared(Path(__file__).with_name("experiments.yaml"), "columns")


def table(results: Seeds, split: str) -> str:
    lines = []
    for row in results.rows:
        records = results.of(row.name)
        if records:
            cells = [spread(results.over([row.name], split, key), digits) for key, digits in COLUMNS.values()]
            seconds = fmean(record["training_seconds"] for record in records)
            lines.append([row.name, *cells, f"{seconds / 60:.0f}"])
    return markdown(["", *COLUMNS, "processor minutes"], lines)


def bar(results: Seeds) -> str:
    lines = []
    for row in results.rows:
        found = results.over([row.name], "test", "cider")
        if found:
            lines.append([row.name, f"{median(found):.3f}", f"{BAR}", "yes" if median(found) >= BAR else "no"])
    return markdown(["", "CIDEr-D on test, median of the seeds", "bar", "reached"], lines)


def write(folder: Path) -> list[Path]:
    """Tables of what is there."""
    results, chosen = (Seeds(Store(folder, [section]).rows, ROWS[section]) for section in ("rows", "choices"))
    parts = []
    if results.rows:
        parts += [("The bar", bar(results)), ("On the test images", table(results, "test"))]
    if chosen.rows:
        parts.append(("Choices, on images of their own", table(chosen, "choices")))
    seeds = f"Seeds: {', '.join(map(str, results.seeds)) or 'none yet'}."
    return [page("Tables of the photo study", seeds, parts, folder / "tables.md")]
