"""From results/runs.jsonl to results/tables.md, results/controls.json and the plots. Nothing is run here.

Gap closed = (method - base) / (supervised - base), per base and seed; medians over bases and seeds are of the ratios.
Of a row that was run more than once (with other settings, as the library's defaults moved) the last run counts.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import plots
from learned import learning_tables
from study import BASE, PAPER_GT, SIZES, SUPERVISED, WIDTHS, ZERO

Row = dict[str, Any]
OPENINGS, LIKELIHOODS = "forced opening", ("best of 8 by mean log-likelihood", "best of 8 by total log-likelihood")
FIGURES = {  # heading -> (scorer, figure); the primary ones first
    "CIDEr-D": ("cider", "cider"),
    "fact F1": ("storybook", "fact_f1"),
    "BLEU-4": ("bleu", "bleu_4"),
    "ROUGE-L": ("rouge", "rouge"),
    "CLIPScore": ("clip", "clip"),
    "mapper": ("vizer", "vizer"),
    "false / fact": ("storybook", "hallucinated_per_fact"),
    "false / caption": ("storybook", "hallucinated_per_caption"),
    "full": ("storybook", "full"),
}
TYPES = ("object", "attribute", "size", "subkind", "relation", "background")
INTRODUCTION = (
    "Made by `python studies/vizer/run.py --only tables` from `runs.jsonl`. Medians over bases and seeds, ranges in "
    "brackets. No choice was made on the images of test and ood; choices were made on val."
)
HEALTH = ("length", "repetition", "vocabulary", "bad_endings", "empty")


class Runs:
    """The rows that count, by section, name, base and seed."""

    def __init__(self, rows: Iterable[Row]) -> None:
        last = {(row["section"], row["name"], row["base"], row["seed"]): row for row in rows}
        self.rows = list(last.values())

    def section(self, section: str) -> list[Row]:
        return [row for row in self.rows if row["section"] == section]

    def names(self, section: str) -> list[str]:
        return list(dict.fromkeys(row["name"] for row in self.section(section)))

    def pairs(self, section: str = "main") -> list[tuple[str, int]]:
        return list(dict.fromkeys((row["base"], row["seed"]) for row in self.section(section)))

    def get(self, section: str, name: str, base: str, seed: int) -> Row | None:
        wanted = {"section": section, "name": name, "base": base, "seed": seed}
        return next((row for row in self.rows if wanted.items() <= row.items()), None)

    def values(self, section: str, name: str, split: str, heading: str) -> list[float]:
        """A figure of a row on each base and seed."""
        found = (figure(row, split, heading) for row in self.section(section) if row["name"] == name)
        return [value for value in found if value is not None]

    def gaps(self, section: str, name: str, split: str, heading: str) -> list[float]:
        """The gap that a row closes, on each base and seed where base and ceiling are known."""
        closed = []
        for base, seed in self.pairs(section):
            trio = [self.get("main", BASE, base, seed), self.get("main", SUPERVISED, base, seed),
                    self.get(section, name, base, seed)]  # fmt: skip
            values = [row and figure(row, split, heading) for row in trio]
            low, high, value = values
            if low is not None and high is not None and value is not None and high != low:
                closed.append((value - low) / (high - low))
        return closed


def figure(row: Row, split: str, heading: str) -> float | None:
    scorer, key = FIGURES.get(heading) or ("health" if heading in HEALTH else "storybook", heading)
    return row.get("scores", {}).get(split, {}).get(scorer, {}).get("values", {}).get(key)


def number(values: Sequence[float], digits: int = 3) -> str:
    """The median; with more than one value, their range behind it."""
    if not values:
        return "-"
    text = f"{median(values):.{digits}f}"
    return text if len(values) == 1 else f"{text} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def markdown(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = [head, ["---"] + ["---:"] * (len(head) - 1), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def row_table(runs: Runs, section: str, names: Sequence[str], split: str) -> str:
    head = ["", *FIGURES, "gap closed, CIDEr-D", "gap closed, fact F1"]
    lines = []
    for name in names:
        cells = [number(runs.values(section, name, split, heading)) for heading in FIGURES]
        gaps = [number(runs.gaps(section, name, split, heading), 2) for heading in ("CIDEr-D", "fact F1")]
        lines.append([name, *cells, *gaps])
    return markdown(head, lines)


def interval_table(runs: Runs, names: Sequence[str]) -> str:
    """Primary figures of each base and seed with their 95% bootstrap intervals over test images."""
    lines = []
    for base, seed in runs.pairs():
        for name in names:
            row = runs.get("main", name, base, seed)
            if row:
                cells = [with_interval(row, split, h) for split in ("test", "ood") for h in ("CIDEr-D", "fact F1")]
                seconds = row.get("training_seconds")
                lines.append([f"{name}, {base}, seed {seed}", *cells, f"{seconds:.0f}" if seconds else "-"])
    return markdown(["", "test CIDEr-D", "test fact F1", "ood CIDEr-D", "ood fact F1", "seconds to train"], lines)


def with_interval(row: Row, split: str, heading: str) -> str:
    value = figure(row, split, heading)
    scorer, key = FIGURES[heading]
    interval = row["scores"].get(split, {}).get(scorer, {}).get("interval", {}).get(key)
    if value is None:
        return "-"
    return f"{value:.3f}" + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")


def type_table(runs: Runs, names: Sequence[str], split: str) -> str:
    head = ["precision / recall", *TYPES]
    lines = []
    for name in names:
        pairs = [[runs.values("main", name, split, f"{t}_{side}") for side in ("precision", "recall")] for t in TYPES]
        lines.append([name, *(" / ".join(f"{median(v):.2f}" if v else "-" for v in pair) for pair in pairs)])
    return markdown(head, lines)


def health_table(runs: Runs, names: Sequence[str], split: str) -> str:
    """Figures, and behind them the ratio to those of the references (one per image)."""
    lines = []
    for name in names:
        cells = []
        for key in HEALTH:
            values, own = runs.values("main", name, split, key), runs.values("main", "references", split, key)
            ratio = f" (x {median(values) / median(own):.2f})" if values and own and median(own) else ""
            cells.append((f"{median(values):.3f}" if values else "-") + ratio)
        lines.append([name, *cells])
    return markdown(["", *HEALTH], lines)


def control_names(runs: Runs) -> list[str]:
    """The four controls; of the openings and of the likelihoods the one that is best on val."""
    names = runs.names("controls")
    groups = [[n for n in names if n.startswith(OPENINGS)], [n for n in names if n in LIKELIHOODS]]
    best = [max(own, key=lambda n: median(runs.values("controls", n, "val", "CIDEr-D"))) for own in groups if own]
    return [n for n in ("length reward", "reward on the wrong image") if n in names] + best


def bars(runs: Runs) -> str:
    """The claims of the study, each with what was measured."""
    lines = []

    def claim(text: str, values: Sequence[float], holds: Any) -> None:
        verdict = "-" if not values else "yes" if holds(median(values)) else "**no**"
        lines.append([text, number(values), verdict])

    for split, bar in (("test", 0.85), ("ood", 0.7)):
        for heading in ("CIDEr-D", "fact F1"):
            gaps = runs.gaps("main", ZERO, split, heading)
            claim(f"{ZERO} closes >= {bar} of the {heading} gap on {split}", gaps, lambda v, bar=bar: v >= bar)
    false = ratios(runs, ZERO, SUPERVISED, "test", "false / fact")
    claim(f"{ZERO}: false facts per fact <= 1.25 x the supervised model's", false, lambda v: v <= 1.25)
    for key in ("length", "repetition", "vocabulary"):
        ratio = ratios(runs, ZERO, "references", "test", key)
        least = 0 if key == "repetition" else 1 / 1.5
        claim(f"{ZERO}: {key} within 1.5 x the references'", ratio, lambda v, least=least: least <= v <= 1.5)
    for name in control_names(runs):
        for heading in ("CIDEr-D", "fact F1"):
            gaps = runs.gaps("controls", name, "test", heading)
            claim(f"{name} closes <= 0.25 of the {heading} gap", gaps, lambda v: v <= 0.25)
    claim("paper GT: CIDEr-D >= 3 x the base's", ratios(runs, PAPER_GT, BASE, "test", "CIDEr-D"), lambda v: v >= 3)
    return markdown(["claim", "median (range)", "holds"], lines)


def ratios(runs: Runs, name: str, other: str, split: str, heading: str) -> list[float]:
    found = []
    for base, seed in runs.pairs():
        rows = [runs.get("main", n, base, seed) for n in (name, other)]
        above, below = (row and figure(row, split, heading) for row in rows)
        if above is not None and below:
            found.append(above / below)
    return found


def choice_table(runs: Runs) -> str:
    shown = ("CIDEr-D", "fact F1", "false / fact", "length")
    head = ["change", *(f"val {heading}" for heading in shown), "test CIDEr-D", "seconds to train"]
    lines = []
    for name in runs.names("choices"):
        cells = [number(runs.values("choices", name, "val", heading)) for heading in shown]
        rows = [row for row in runs.section("choices") if row["name"] == name]
        seconds = [row["training_seconds"] for row in rows if row.get("training_seconds")]
        cells += [number(runs.values("choices", name, "test", "CIDEr-D")), number(seconds, 0)]
        lines.append([name, *cells])
    return markdown(head, lines)


def sweep_table(runs: Runs) -> str:
    lines = []
    for variant in ("GT", "G"):
        for size in SIZES:
            values = [runs.values("sweep", f"{variant} {size} x {width}", "test", "CIDEr-D") for width in WIDTHS]
            lines.append([f"{variant}, {size} images", *(number(v) for v in values)])
    return markdown(["test CIDEr-D", *(f"width {width}" for width in WIDTHS)], lines)


def controls_json(runs: Runs) -> dict[str, Any]:
    """The controls on the first base and seed, as rows of scores.json: what `captune demo` shows beside its own."""
    rows = []
    for base, seed in runs.pairs("controls")[:1]:
        for name in control_names(runs):
            row = runs.get("controls", name, base, seed)
            if row:
                source = row["sources"]["test"]
                rows.append({"name": name, "role": "control", "scores": row["scores"]["test"], "source": source})
    return {"rows": rows}


def write(rows: Sequence[Row], results: Path, *, order: Sequence[str]) -> list[Path]:
    """Writes everything that the rows give; returns the files."""
    runs = Runs(rows)
    names = [name for name in order if name in runs.names("main")]
    parts = ["# Tables of the ViZer study", "", INTRODUCTION]
    bases = ", ".join(f"{base} (seed {seed})" for base, seed in runs.pairs())
    parts += ["", f"Bases: {bases}.", "", "## Claims", "", bars(runs)]
    for split, title in (("test", "Main rows, test"), ("ood", "Main rows, out of distribution")):
        parts += ["", f"## {title}", "", row_table(runs, "main", names, split)]
    parts += ["", "## Main rows, base by base, 95% intervals", "", interval_table(runs, names)]
    parts += ["", "## Facts by type, test", "", type_table(runs, [*names, "references"], "test")]
    parts += ["", "## Health, test", "", health_table(runs, [*names, "references"], "test")]
    if runs.names("controls"):
        parts += ["", "## Controls, test", "", row_table(runs, "controls", runs.names("controls"), "test")]
    parts += learning_tables(runs)
    if runs.names("choices"):
        parts += ["", "## Choices: the preset, one change at a time", "", choice_table(runs)]
    if runs.names("sweep"):
        parts += ["", "## Width of the mapper by images that it is fitted on", "", sweep_table(runs)]
    results.mkdir(parents=True, exist_ok=True)
    (results / "tables.md").write_text("\n".join(parts) + "\n")
    (results / "controls.json").write_text(json.dumps(controls_json(runs), indent=1) + "\n")
    return [results / "tables.md", results / "controls.json", *plots.draw(runs, results, controls=control_names(runs))]
