"""From the rows' files to results/tables.md and the plot: `python -m studies har --tables`.

Intervals are 95% t intervals over seeds, of the difference or ratio taken within each seed. A seed has its own training
and its own test images, so they cover both.
"""

from __future__ import annotations

from pathlib import Path
from statistics import fmean, median

from studies._lib.rows import shared
from studies._lib.store import Store
from studies._lib.tables import Estimate, Seeds, markdown, page, spread

from . import plots
from .experiments import CEILINGS, GUIDED, PAIRS, ROWS

SPLITS = {"test": "in distribution", "ood": "out of distribution"}
COLUMNS = shared(Path(__file__).with_name("experiments.yaml"), "columns")
FIDELITY = (
    "CLIPScore, held-out encoder", "CLIPScore, storybook-clip", "fact F1", "relation F1", "sub-kind F1",
    "false / stated",
)  # fmt: skip
BAR = 1.10


def scores_table(results: Seeds, split: str) -> str:
    lines = []
    for row in results.rows:
        cells = [spread(results.over([row.name], split, key), digits) for key, digits in COLUMNS.values()]
        costs = [record["cost"] for record in results.of(row.name) if "cost" in record]
        for key, scale, digits in (("seconds", 1000, 1), ("forward_passes", 1, 1)):
            cells.append(f"{scale * median(cost[key] for cost in costs):.{digits}f}" if costs else "-")
        lines.append([row.name, *cells])
    return markdown(["", *COLUMNS, "ms per caption", "in forward passes"], lines)


def bar_table(results: Seeds) -> str:
    """CIDEr-D after SCST over CIDEr-D before, and bad endings."""
    lines = []
    for a, b in [*CEILINGS, *PAIRS[:-2]]:  # those with ZeroCap say nothing of self-critical training
        cells = []
        for split in SPLITS:
            each = results.over([a, b], split, "cider", lambda own, other: own / other)
            cells += [str(Estimate.of(each)), f"{sum(x >= BAR for x in each)} of {len(each)}"] if each else ["-", "-"]
        endings = results.over([a], "test", "bad_endings")
        cells.append(f"{fmean(endings):.2%}, {max(endings):.2%}" if endings else "-")
        lines.append([f"{a} / {b}", *cells])
    told = [text for name in SPLITS.values() for text in (f"CIDEr-D, ratio, {name}", f"seeds with >= {BAR:.2f}")]
    return markdown(["", *told, "bad endings, mean and worst seed"], lines)


def fidelity_table(results: Seeds, split: str) -> str:
    """What a row has more than another, per seed: the paper's claim is that none of it is below 0."""
    lines = []
    for a, b in [*PAIRS, *GUIDED]:
        cells = []
        for heading in FIDELITY:
            more, sign = results.more(a, b, split, COLUMNS[heading][0]), -1 if heading == "false / stated" else 1
            cells.append("-" if more is None else f"{more} {verdict(more, sign)}".strip())
        lines.append([f"{a} - {b}", *cells])
    return markdown(["", *FIDELITY], lines)


def verdict(more: Estimate, sign: int) -> str:
    """In words, where the interval leaves no doubt about the direction."""
    if more.low is None or more.high is None:
        return ""
    low, high = sorted((sign * more.low, sign * more.high))
    return "better" if low > 0 else "worse" if high < 0 else "open"


def time_table(results: Seeds) -> str:
    lines = []
    for row in results.rows:
        if row.training:
            stages = [record["training_seconds"] for record in results.of(row.name)]
            means = [fmean(seconds) for seconds in zip(*stages, strict=True)]
            named = [f"{method} {settings or ''}".strip().replace("'", "") for method, settings in row.stages]
            lines.append([row.name, " then ".join(named), " + ".join(f"{s:.0f}" for s in means), f"{sum(means):.0f}"])
    return markdown(["", "stages, where not at their defaults", "seconds", "in all"], lines)


def choice_table(results: Seeds) -> str:
    lines = []
    for row in results.rows:
        cells = [spread(results.over([row.name], "val", key), digits) for key, digits in COLUMNS.values()]
        lines.append([row.name, *cells, f"{sum(results.of(row.name)[0]['training_seconds']):.0f}"])
    return markdown(["", *COLUMNS, "seconds"], lines)


def write(folder: Path) -> list[Path]:
    """Tables and plots of what is there."""
    results, chosen = (Seeds(Store(folder, [section]).rows, ROWS[section]) for section in ("rows", "choices"))
    parts, files = [], []
    if results.rows:
        parts.append(("CIDEr-D: the gain of self-critical training", bar_table(results)))
        for make, before, behind in (
            (fidelity_table, "Fidelity", "what the first has more than the second"),
            (scores_table, "All rows", "mean ± standard deviation over seeds"),
        ):
            parts += [(f"{before}, {title}: {behind}", make(results, split)) for split, title in SPLITS.items()]
        parts.append(("Training: processor seconds of one core", time_table(results)))
        files.append(plots.save(folder / "curves.svg", plots.curves, results))
    if chosen.rows:
        parts.append(("Choices, on val, another base", choice_table(chosen)))
    seeds = f"Seeds: {', '.join(map(str, results.seeds)) or 'none yet'}."
    return [page("Tables of the HAR study", seeds, parts, folder / "tables.md"), *files]
