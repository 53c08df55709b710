"""From the rows to results/tables.md, results/controls.json and the plots: `python -m studies vizer --tables`.

Gap closed = (method - base) / (supervised - base), per base and seed; medians over bases and seeds are of the ratios.
Of a row that was run more than once (with other settings, as the library's defaults moved) the last run counts.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from studies._lib import tables
from studies._lib.tables import CLAIMS, GAPS, claim, markdown, number

from . import plots
from .experiments import BASE, MAIN_ROWS, PAPER_GT, SIZES, SUPERVISED, WIDTHS, ZERO
from .probing import SLOTS

OPENINGS, LIKELIHOODS = "forced opening", ("best of 8 by mean log-likelihood", "best of 8 by total log-likelihood")
HEALTH = ("length", "repetition", "vocabulary", "bad_endings", "empty")
SPOKEN = ("object", "attribute", "size", "subkind", "relation", "background")
INTRODUCTION = (
    "Made by `python -m studies vizer --tables` from the rows. Medians over bases and seeds, ranges in "
    "brackets. No choice was made on the images of test and ood; choices were made on val."
)


class Runs(tables.Runs):
    main = "main"
    headings = (
        "CIDEr-D",
        "fact F1",
        "BLEU-4",
        "ROUGE-L",
        "CLIPScore",
        "mapper",
        "false / fact",
        "false / caption",
        "full",
    )

    def ratios(self, name: str, other: str, heading: str) -> list[float]:
        """Of two rows of `main` on test, on each base and seed that has both."""
        found = []
        for pair in self.pairs("main"):
            above, below = (self.figure(self.get("main", own, *pair), "test", heading) for own in (name, other))
            if above is not None and below:
                found.append(above / below)
        return found

    def controls(self) -> list[str]:
        """The four controls; of the openings and of the likelihoods the one that is best on val."""
        names = self.names("controls")
        openings = self.best("controls", [n for n in names if n.startswith(OPENINGS)], "CIDEr-D")
        likelihoods = self.best("controls", [n for n in names if n in LIKELIHOODS], "CIDEr-D")
        return [n for n in ("length reward", "reward on the wrong image") if n in names] + openings + likelihoods

    def middle(self, name: str, part: str, key: str, value: str) -> float | None:
        """The median over bases and seeds of one figure of the section `learning`."""
        rows = [row[part][key] for row in self.section("learning", name) if key in row[part]]
        found = [row[value] for row in rows if value in row]
        return median(found) if found else None


def health_table(runs: Runs, names: Sequence[str]) -> str:
    """Figures, and behind them the ratio to those of the references (one per image)."""
    lines = []
    for name in names:
        cells = []
        for key in HEALTH:
            values, refs = (runs.values("main", row, "test", key) for row in (name, "references"))
            ratio = f" (x {median(values) / median(refs):.2f})" if values and refs and median(refs) else ""
            cells.append((f"{median(values):.3f}" if values else "-") + ratio)
        lines.append([name, *cells])
    return markdown(["", *HEALTH], lines)


def claim_table(runs: Runs) -> str:
    """The claims of the study, each with what was measured."""
    lines = []
    for split, bar in (("test", 0.85), ("ood", 0.7)):
        for heading in GAPS:
            gaps = runs.gaps("main", ZERO, split, heading)
            lines.append(
                claim(f"{ZERO} closes >= {bar} of the {heading} gap on {split}", gaps, lambda v, bar=bar: v >= bar)
            )
    false = runs.ratios(ZERO, SUPERVISED, "false / fact")
    lines.append(claim(f"{ZERO}: false facts per fact <= 1.25 x the supervised model's", false, lambda v: v <= 1.25))
    for key, least in (("length", 1 / 1.5), ("repetition", 0), ("vocabulary", 1 / 1.5)):
        ratio = runs.ratios(ZERO, "references", key)
        lines.append(
            claim(f"{ZERO}: {key} within 1.5 x the references'", ratio, lambda v, least=least: least <= v <= 1.5)
        )
    for name in runs.controls():
        for heading in GAPS:
            gaps = runs.gaps("controls", name, "test", heading)
            lines.append(claim(f"{name} closes <= 0.25 of the {heading} gap", gaps, lambda v: v <= 0.25))
    ratio = runs.ratios(PAPER_GT, BASE, "CIDEr-D")
    lines.append(claim("paper GT: CIDEr-D >= 3 x the base's", ratio, lambda v: v >= 3))
    return markdown(CLAIMS, lines)


def choice_table(runs: Runs) -> str:
    shown, lines = ("CIDEr-D", "fact F1", "false / fact", "length"), []
    for name in runs.names("choices"):
        cells = [number(runs.values("choices", name, "val", heading)) for heading in shown]
        seconds = [row.get("training_seconds") for row in runs.section("choices", name)]
        lines.append([name, *cells, number(runs.values("choices", name, "test", "CIDEr-D")), number(seconds, 0)])
    return markdown(["change", *(f"val {heading}" for heading in shown), "test CIDEr-D", "seconds to train"], lines)


def sweep_table(runs: Runs) -> str:
    lines = []
    for variant in ("GT", "G"):
        for size in SIZES:
            values = [runs.values("sweep", f"{variant} {size} x {width}", "test", "CIDEr-D") for width in WIDTHS]
            lines.append([f"{variant}, {size} images", *map(number, values)])
    return markdown(["test CIDEr-D", *(f"width {width}" for width in WIDTHS)], lines)


def learning_tables(runs: Runs) -> str:
    """What captioners see and state, where habit agrees with the truth or not."""
    names = runs.names("learning")

    def cell(name: str, part: str, key: str, *figures: str) -> str:
        values = (runs.middle(name, part, key, figure) for figure in figures)
        return " / ".join("-" if value is None else f"{value:.2f}" for value in values)

    def lines(part: str, facts: Iterable[str], splits: dict[str, str], *figures: str) -> list[list[str]]:
        return [
            [
                fact if not label else f"{fact}, {label}",
                *(cell(name, part, f"{fact}/{split}", *figures) for name in names),
            ]
            for fact in facts
            for split, label in splits.items()
            if any(runs.middle(name, part, f"{fact}/{split}", figures[0]) is not None for name in names)
        ]

    habit = {"differs": "habit differs", "agrees": "habit agrees"}
    return "\n".join([
        "One slot of the shortest description, the words before it given. Right (the most probable filling is true) / "
        "p(true) / p(habit's word).", "",
        markdown(["slot", *names], lines("slots", SLOTS, habit | {"all": "all"}, "right", "p_true", "p_habit")),
        "", "Among the fillings that state something (\"and\" states no relation), the share of slots where the most "
        "probable one is true.", "", markdown(["slot", *names], lines("slots", SLOTS, {"all": ""}, "sees")),
        "", "Entropy of the slot in bits.", "",
        markdown(["slot", *names], lines("slots", SLOTS, {"all": ""}, "entropy")),
        "", "Facts in greedy captions: share true / share that says what habit says.", "",
        markdown(["fact", *names], lines("spoken", SPOKEN, habit | {"no habit": "no habit"}, "true", "habit")),
    ])  # fmt: skip


def controls_json(runs: Runs) -> dict[str, Any]:
    """The controls on the first base and seed, as rows of scores.json: what `captune demo` shows beside its own."""
    rows = []
    for pair in runs.pairs("controls")[:1]:
        for name in runs.controls():
            if row := runs.get("controls", name, *pair):
                scores, source = row["scores"]["test"], row["sources"]["test"]
                rows.append({"name": name, "role": "control", "scores": scores, "source": source})
    return {"rows": rows}


def write(rows: Iterable[tables.Record], results: Path) -> list[Path]:
    """Writes everything that the rows give; returns the files."""
    runs = Runs(rows)
    main = [("main", name) for name in MAIN_ROWS if name in runs.names("main")]
    named = [name for _, name in main]
    pairs = runs.pairs("main")
    found = [(name, *pair, runs.get("main", name, *pair)) for pair in pairs for name in named]
    labelled = [(f"{name}, {base}, seed {seed}", row) for name, base, seed, row in found if row]
    parts = [
        ("Claims", claim_table(runs)),
        ("Main rows, test", runs.table(main, "test")),
        ("Main rows, out of distribution", runs.table(main, "ood")),
        ("Main rows, base by base, 95% intervals", runs.interval_table(labelled, "-")),
        ("Facts by type, test", runs.type_table([*main, ("main", "references")], "test")),
        ("Health, test", health_table(runs, [*named, "references"])),
    ]
    if names := runs.names("controls"):
        parts.append(("Controls, test", runs.table([("controls", name) for name in names], "test")))
    if runs.names("learning"):
        parts.append(("Looking or a way of speaking", learning_tables(runs)))
    if runs.names("choices"):
        parts.append(("Choices: the preset, one change at a time", choice_table(runs)))
    if runs.names("sweep"):
        parts.append(("Width of the mapper by images that it is fitted on", sweep_table(runs)))
    bases = ", ".join(f"{base} (seed {seed})" for base, seed in pairs)
    page = tables.page("Tables of the ViZer study", f"{INTRODUCTION}\n\nBases: {bases}.", parts, results / "tables.md")
    controls = results / "controls.json"
    controls.write_text(json.dumps(controls_json(runs), indent=1) + "\n")
    return [page, controls, *plots.draw(runs, results)]
