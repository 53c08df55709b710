"""From the rows' files to tables and plots; nothing is run, and the same rows give the same bytes.

Intervals are 95% t intervals over seeds, of the difference or ratio taken within each seed. A seed has its own training
and its own test images, so they cover both.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from systems import (
    BASE,
    CEILING,
    DROPPED,
    EARLY,
    EARLY_LONGER,
    HAR,
    LONG,
    LONGER,
    MIXED,
    REFINED,
    SCST,
    SFT,
    SILENT,
    SOME_SEEDS,
    ZEROCAP,
    Row,
    choices,
    rows,
)  # fmt: skip

from captune.evaluation.statistics import Estimate

GUIDANCE = Path(__file__).parents[2] / "benchmarks" / "speed" / "decoding_guidance.json"
SPLITS = {"test": "in distribution", "ood": "out of distribution"}
COLUMNS = {  # heading -> (figure, digits)
    "CLIPScore, held-out encoder": ("held_out_clip", 3),
    "CIDEr-D": ("cider", 2),
    "BLEU-4": ("bleu_4", 3),
    "fact F1": ("fact_f1", 3),
    "relation F1": ("relation_f1", 3),
    "sub-kind F1": ("subkind_f1", 3),
    "false / stated": ("hallucinated_per_fact", 3),
    "bad endings": ("bad_endings", 4),
    "words": ("length", 1),
    "CLIPScore, storybook-clip": ("clip", 3),
}
FIDELITY = {
    "CLIPScore, held-out encoder": ("held_out_clip", 1),
    "CLIPScore, storybook-clip": ("clip", 1),
    "fact F1": ("fact_f1", 1),
    "relation F1": ("relation_f1", 1),
    "sub-kind F1": ("subkind_f1", 1),
    "false / stated": ("hallucinated_per_fact", -1),  # less is better
}
PAIRS = [(SCST, SFT), (LONG, SFT), (MIXED, SFT), (SCST, LONGER), (LONG, LONGER), (MIXED, SCST), (REFINED, EARLY),
         (REFINED, EARLY_LONGER), (SILENT, REFINED), (HAR, "HAR: MLE"), (SCST, ZEROCAP), (HAR, ZEROCAP)]  # fmt: skip
GUIDED = [(DROPPED, SFT), *((f"{DROPPED}, cfg:{scale}", f"{SFT}, cfg:{scale}") for scale in ("1.5", "2")),
          (f"{DROPPED}, cfg:1.5", DROPPED)]  # fmt: skip
CEILINGS = [(CEILING, SFT), (CEILING, EARLY)]
BAR = 1.10
STYLE: Any = {
    "svg.hashsalt": "captune",
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.constrained_layout.use": True,
}


class Results:
    """The records of finished rows, by name and seed."""

    def __init__(self, folder: Path, specs: Iterable[Row]) -> None:
        records = (json.loads(file.read_text()) for file in sorted(folder.glob("*.json")))
        self.records = {(record["name"], record["seed"]): record for record in records}
        self.seeds = sorted({seed for _, seed in self.records})
        self.rows = [row for row in specs if any((row.name, seed) in self.records for seed in self.seeds)]

    def of(self, name: str) -> list[dict[str, Any]]:
        return [self.records[name, seed] for seed in self.seeds if (name, seed) in self.records]

    def figures(self, name: str, split: str, key: str) -> list[float]:
        return [record["scores"][split][key] for record in self.of(name)]

    def compared(
        self, a: str, b: str, split: str, key: str, f: Callable[[float, float], float]
    ) -> tuple[Estimate | None, list[float]]:
        """f of the two rows' figures on each seed that has both: estimated, and one by one."""
        seeds = [seed for seed in self.seeds if (a, seed) in self.records and (b, seed) in self.records]
        pairs = [[self.records[name, seed]["scores"][split][key] for name in (a, b)] for seed in seeds]
        values = [f(*pair) for pair in pairs]
        return Estimate.of(values), values


def markdown(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    table = [head, ["---"] + ["---:"] * (len(head) - 1), *lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in table)


def spread(values: Sequence[float], digits: int) -> str:
    """Mean and standard deviation over seeds, as HAR's table has them."""
    if not values:
        return "-"
    return f"{fmean(values):.{digits}f}" + (f" ± {stdev(values):.{digits}f}" if len(values) > 1 else "")


def scores_table(results: Results, split: str) -> str:
    lines = []
    for row in results.rows:
        cells = [spread(results.figures(row.name, split, key), digits) for key, digits in COLUMNS.values()]
        costs = [record["cost"] for record in results.of(row.name) if "cost" in record]
        for key, scale, digits in (("seconds", 1000, 1), ("forward_passes", 1, 1)):
            cells.append(f"{scale * median(cost[key] for cost in costs):.{digits}f}" if costs else "-")
        lines.append([row.name, *cells])
    return markdown(["", *COLUMNS, "ms per caption", "in forward passes"], lines)


def bar_table(results: Results) -> str:
    """CIDEr-D after SCST over CIDEr-D before, and bad endings."""
    lines = []
    for a, b in [*CEILINGS, *PAIRS[:-2]]:  # those with ZeroCap say nothing of self-critical training
        cells = []
        for split in SPLITS:
            ratio, each = results.compared(a, b, split, "cider", lambda own, other: own / other)
            cells += ["-", "-"] if ratio is None else [str(ratio), f"{sum(x >= BAR for x in each)} of {len(each)}"]
        endings = results.figures(a, "test", "bad_endings")
        cells.append(f"{fmean(endings):.2%}, {max(endings):.2%}" if endings else "-")
        lines.append([f"{a} / {b}", *cells])
    told = [text for name in SPLITS.values() for text in (f"CIDEr-D, ratio, {name}", f"seeds with >= {BAR:.2f}")]
    return markdown(["", *told, "bad endings, mean and worst seed"], lines)


def fidelity_table(results: Results, split: str) -> str:
    """What a row has more than another, per seed: the paper's claim is that none of it is below 0."""
    lines = []
    for a, b in [*PAIRS, *GUIDED]:
        cells = []
        for key, sign in FIDELITY.values():
            more, _ = results.compared(a, b, split, key, lambda own, other: own - other)
            cells.append("-" if more is None else f"{more} {verdict(more, sign)}".strip())
        lines.append([f"{a} - {b}", *cells])
    return markdown(["", *FIDELITY], lines)


def verdict(more: Estimate, sign: int) -> str:
    """In words, where the interval leaves no doubt about the direction."""
    if more.low is None or more.high is None:
        return ""
    low, high = sorted((sign * more.low, sign * more.high))
    return "better" if low > 0 else "worse" if high < 0 else "open"


def time_table(results: Results) -> str:
    lines = []
    for row in results.rows:
        if row.training:
            stages = [record["training_seconds"] for record in results.of(row.name)]
            means = [fmean(own) for own in zip(*stages, strict=True)]
            said = [f"{own.method} {own.settings or ''}".strip().replace("'", "") for own in row.training]
            lines.append([row.name, " then ".join(said), " + ".join(f"{s:.0f}" for s in means), f"{sum(means):.0f}"])
    return markdown(["", "stages, where not at their defaults", "seconds", "in all"], lines)


def choice_table(results: Results) -> str:
    lines = []
    for row in results.rows:
        cells = [spread(results.figures(row.name, "val", key), digits) for key, digits in COLUMNS.values()]
        lines.append([row.name, *cells, f"{sum(results.of(row.name)[0]['training_seconds']):.0f}"])
    return markdown(["", *COLUMNS, "seconds"], lines)


def plots(results: Results, file: Path) -> Path:
    """Left: guidance scales, from the benchmark. Right: what a caption costs and what it is worth."""
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
        guidance = json.loads(GUIDANCE.read_text())
        for name, points in guidance["curves"].items():
            for kind, line in (("cfg", "o-"), ("contrastive", "s--")):
                own = [point for point in points if point["decoder"].startswith(kind) or point["scale"] == 1]
                colour = "#2f6fb0" if name == "supervised" else "#d9822b"
                x, y = ([point[key] for point in own] for key in ("cider", "clip"))
                left.plot(x, y, line, color=colour, markersize=4, alpha=1 if kind == "cfg" else 0.5,
                          label=f"{name}, {kind}")  # fmt: skip
                if kind == "cfg":
                    for point in own:
                        where = (point["cider"], point["clip"])
                        left.annotate(f"{point['scale']:g}", where, (3, -10), textcoords="offset points", fontsize=7)
        left.set_xlabel("CIDEr-D")
        left.set_ylabel("CLIPScore (storybook-clip)")
        left.set_title(f"guidance scales, {guidance['images']}", fontsize=9)
        left.legend(frameon=False, fontsize=8)
        for row in results.rows:
            costs = [record["cost"]["forward_passes"] for record in results.of(row.name) if "cost" in record]
            if costs:
                where = median(costs), fmean(results.figures(row.name, "test", "cider"))
                trained = bool(row.training)
                right.plot(*where, "o", markersize=5, color="#2f6fb0" if trained else "#d9822b")
                if row.name in (BASE, ZEROCAP, SFT, HAR) or row.decoder:
                    told = row.name.replace(DROPPED, f"{SFT} + dropout")
                    above = 5 if told != row.name else -6  # two lie side by side
                    right.annotate(told, where, (6, above), textcoords="offset points", fontsize=7)
        right.set_xscale("log")
        right.set_xticks([3, 5, 10, 20, 50], labels=["3", "5", "10", "20", "50"])
        right.set_xticks([], minor=True)
        right.set_xlabel("cost of a caption, in forward passes")
        right.set_ylabel("CIDEr-D, test")
        right.set_title("blue: trained; orange: training-free", fontsize=9)
        figure.savefig(file, metadata={"Date": None})
        plt.close(figure)
    return file


def write(folder: Path) -> list[Path]:
    """Tables and plots of what is there."""
    results, chosen = Results(folder / "rows", rows(SOME_SEEDS[0])), Results(folder / "choices", choices(1))
    parts = ["# Tables of the HAR study", "", f"Seeds: {', '.join(map(str, results.seeds)) or 'none yet'}."]
    files = []
    if results.rows:
        parts += ["", "## CIDEr-D: the gain of self-critical training", "", bar_table(results)]
        for split, title in SPLITS.items():
            parts += ["", f"## Fidelity, {title}: what the first has more than the second", ""]
            parts += [fidelity_table(results, split)]
        for split, title in SPLITS.items():
            parts += ["", f"## All rows, {title}: mean ± standard deviation over seeds", ""]
            parts += [scores_table(results, split)]
        parts += ["", "## Training: processor seconds of one core", "", time_table(results)]
        files.append(plots(results, folder / "curves.svg"))
    if chosen.rows:
        parts += ["", "## Choices, on val, another base", "", choice_table(chosen)]
    file = folder / "tables.md"
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(parts) + "\n")
    return [file, *files]
