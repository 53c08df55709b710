"""From the rows to results/tables.md and the plots: `python -m studies cim --tables`.

Gap closed = (row - base) / (supervised - base), with the supervised row of the same training seed; medians over seeds
are of the ratios. Of a row that was run more than once (with other settings) the last run counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from studies._lib import tables
from studies._lib.tables import CLAIMS, claim, markdown, number

from . import plots
from .detail import LEVELS
from .experiments import BASE, BOTH, GRC, LENGTH, LIKELIHOODS, QIR, REFERENCES, SUPERVISED, WRONG_IMAGE

OPENING = "forced opening"
SHORT = ("CIDEr-D", "fact F1", "false / fact", "relation P", "relation R", "sub-kind P", "sub-kind R", "length")
TRAINED = ("base", "supervised", "cim")  # roles of the rows whose seeds are shown one by one
MEASURES = ("grc", "qir", "grc + qir")
INTRODUCTION = (
    "Made by `python -m studies cim --tables` from the rows. Medians over training seeds, ranges in "
    "brackets. No choice was made on the images of test and ood; choices were made on val."
)


class Runs(tables.Runs):
    main = "ablation"
    headings = (
        "CIDEr-D",
        "fact F1",
        "precision",
        "recall",
        "false / fact",
        "relation P",
        "relation R",
        "sub-kind P",
        "sub-kind R",
        "length",
        "repetition",
        "CLIPScore",
        "GRC",
        "QIR",
    )

    def controls(self) -> list[str]:
        """The four controls; of the openings and of the likelihoods the one that is best on val."""
        names = self.names("ablation")
        openings = self.best("ablation", [n for n in names if n.startswith(OPENING)], "fact F1")
        likelihoods = self.best("ablation", [n for n in names if n in LIKELIHOODS], "fact F1")
        return [n for n in (LENGTH, WRONG_IMAGE) if n in names] + openings + likelihoods


def claim_table(runs: Runs) -> str:
    """What was asked of the study, each with what was measured."""
    both = runs.gap_by_seed("ablation", BOTH, "test", "fact F1")
    gaps = list(both.values())
    lines = [claim("GRC + QIR closes >= 0.5 of the fact-F1 gap to supervision", gaps, lambda v: v >= 0.5)]
    for name in runs.controls():
        gaps = runs.gaps("ablation", name, "test", "fact F1")
        lines.append(claim(f"{name} closes <= 0.25 of it", gaps, lambda v: v <= 0.25))
    for name in (GRC, QIR):
        alone = runs.gap_by_seed("ablation", name, "test", "fact F1")
        more = [both[seed] - alone[seed] for seed in both if seed in alone]
        text = f"GRC + QIR closes more of it than {name} alone, with every seed (by)"
        lines.append(claim(text, more, lambda _, more=more: min(more) > 0))
    return markdown(CLAIMS, lines)


def species_table(runs: Runs, rows: Sequence[tuple[str, str]]) -> str:
    """CIM's Table 1."""
    lines = [[name, *(number(runs.values(section, name, "test", f"{level}_acc")) for level in ("species", "breed"))]
             for section, name in rows]  # fmt: skip
    return markdown(["told from the caption alone", "kind (species)", "sub-kind (breed)"], lines)


def verification_table(runs: Runs, population: str) -> str:
    head = ["writer, text encoder", "kind", "sub-kind", "fact F1"]
    head += (
        [f"r, {m}" for m in MEASURES] + [f"more sub-kinds, {m}" for m in MEASURES] + [f"truer, {m}" for m in MEASURES]
    )
    lines = []
    for row in runs.section("verification"):
        own = row["populations"][population]
        measures = [own["measures"][m] for m in MEASURES]
        cells = [[own[k]] for k in ("species_acc", "breed_acc", "fact_f1")] + [[m["r"]] for m in measures]
        cells += [[m[truth]["preferred"]] for truth in ("breeds", "facts") for m in measures]
        lines.append([row["name"], *(number(cell, 2) for cell in cells)])
    return markdown(head, lines)


def sight_table(runs: Runs) -> str:
    """What is said of things that are there, by samples at temperature 1: how often per caption / how often true."""
    types = ("attribute", "size", "subkind", "relation")
    lines = []
    for row in runs.section("verification"):
        if row["name"].endswith("MiniLM"):
            figures = row["populations"]["scenes"]["of_things_there"]
            pairs = [[number([figures[t][key]], 2) for key in ("stated", "true")] for t in types]
            lines.append([row["name"].rpartition(", ")[0], *(" / ".join(pair) for pair in pairs)])
    return markdown(["stated per caption / true", *types], lines)


def detail_table(runs: Runs, measure: str) -> str:
    """Means over scenes of two things, level by level; then how often the fuller or the right caption wins."""
    shown = [level for level in LEVELS if level != "everything"]
    head = [measure, *shown, "full > thing", *(f"{n} things" for n in (1, 2, 3, 4)), "right > changed kind"]
    lines = []
    for row in runs.section("detail"):
        own = row["measures"][measure]
        cells = [own["levels"]["2"].get(level) for level in shown]
        cells += [own["full"], *own["full_by_things"].values(), own["right"]]
        lines.append([row["name"], *(number([cell], 3 if i < len(shown) else 2) for i, cell in enumerate(cells))])
    return markdown(head, lines)


def choice_table(runs: Runs) -> str:
    shown = ("CIDEr-D", "fact F1", "false / fact", "length", "repetition", "GRC", "QIR")
    lines = [
        [name, *(number(runs.values("choices", name, "val", heading)) for heading in shown)]
        for name in runs.names("choices")
    ]
    return markdown(["val", *shown], lines)


def write(rows: Iterable[tables.Record], results: Path) -> list[Path]:
    """Writes everything that the rows give; returns the files."""
    runs = Runs(rows)
    order = [BASE, GRC, QIR, BOTH, SUPERVISED, REFERENCES, *runs.controls()]
    ablation = [("ablation", name) for name in order if name in runs.names("ablation")]
    others = [("ablation", name) for name in runs.names("ablation") if ("ablation", name) not in ablation]
    on_sft = [("sft", name) for name in runs.names("sft")]
    parts = []
    if ablation:
        parts += [
            ("What was asked", claim_table(runs)),
            ("Ablation and controls, test", runs.table(ablation, "test")),
            ("Ablation and controls, out of distribution", runs.table(ablation, "ood")),
            ("Facts by type, test", runs.type_table(ablation + on_sft, "test")),
            ("Table 1: kinds and sub-kinds, test", species_table(runs, ablation + on_sft)),
            ("The other openings and likelihoods, test", runs.table(others, "test", SHORT)),
        ]
    if on_sft:
        started = [row for row in ablation if row[1] in (BASE, BOTH, SUPERVISED)]
        parts.append(("RL on the base and on the supervised captioner, test", runs.table(started + on_sft, "test")))
    trained = [row for row in runs.section("ablation") + runs.section("sft") if row["role"] in TRAINED]
    if trained:
        labelled = [(f"{row['name']}, seed {row['seed']}", row) for row in trained]
        parts.append(("Run by run, 95% intervals over images", runs.interval_table(labelled, "0")))
    for section, title in (("scaling", "Size of the gallery"), ("robustness", "Encoders"), ("readings", "Readings")):
        if names := runs.names(section):
            named = [(section, name) for name in names]
            parts.append((f"{title}, test", runs.table(named, "test", [*SHORT, "GRC", "QIR"])))
    if runs.names("verification"):
        populations = ("one thing", "scenes")
        parts += [(f"Figure 2, images of {own}", verification_table(runs, own)) for own in populations]
        parts.append(("What is said of things that are there, samples", sight_table(runs)))
    if runs.names("detail"):
        parts += [(f"Detail: {measure}", detail_table(runs, measure)) for measure in MEASURES]
    if runs.names("choices"):
        parts.append(("Choices", choice_table(runs)))
    page = tables.page("Tables of the CIM study", INTRODUCTION, parts, results / "tables.md")
    return [page, *plots.draw(runs, results)]
