"""The study's plots, small SVG files; the same rows give the same bytes."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt

from studies._lib.plots import BLUE, GREEN, GREY, ORANGE, gap_bars, save

from .detail import LEVELS
from .experiments import BASE, BOTH, GRC, QIR, SIZES, SUPERVISED

if TYPE_CHECKING:
    from .tables import Runs


def draw(runs: Runs, results: Path) -> list[Path]:
    files = []
    if runs.names("verification"):
        files.append(save(results / "verification.svg", bins, runs))
    if runs.names("detail"):
        files.append(save(results / "detail.svg", levels, runs))
    if runs.gaps("ablation", BOTH, "test", "fact F1"):  # Figure 4 with the controls
        rows = [("ablation", n) for n in (GRC, QIR, BOTH, *runs.controls()) if n in runs.names("ablation")]
        rows += [("sft", n) for n in runs.names("sft")]
        files.append(save(results / "ablation.svg", gap_bars, runs, rows, margin=0.6))
    if runs.names("scaling"):
        files.append(save(results / "scaling.svg", scaling, runs))
    return files


def bins(runs: Runs) -> Any:
    """The paper's Figure 2: a point per bin of 100 captions; rows are populations, columns measures."""
    populations, measures = ("one thing", "scenes"), ("grc", "qir", "grc + qir")
    figure, axes = plt.subplots(2, 3, figsize=(10, 6), sharey="row")
    colours = {BASE: GREY, "changed references": ORANGE, SUPERVISED: GREEN, BOTH: BLUE}
    for line, population in zip(axes, populations, strict=True):
        for axis, measure in zip(line, measures, strict=True):
            for row in runs.section("verification"):
                writer, _, encoder = row["name"].rpartition(", ")
                if encoder != "MiniLM":
                    continue
                found = row["populations"][population]["measures"][measure]
                x, y = zip(*found["points"], strict=True) if found["points"] else ((), ())
                r = "-" if found["r"] is None else f"{found['r']:.2f}"
                axis.plot(x, y, "o", color=colours[writer], markersize=3, alpha=0.8, label=f"{writer}, r = {r}")
            axis.set_xlabel(f"{measure}, mean of the bin ({population})")
            axis.legend(frameon=False, fontsize=7)
        line[0].set_ylabel("logit of sub-kinds told")
    return figure


def levels(runs: Runs) -> Any:
    """GRC and QIR of true captions by how much they say (scenes of three things), a line per gallery."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.6))
    for axis, measure in zip(axes, ("grc", "qir"), strict=True):
        for number, row in enumerate(runs.section("detail")):
            own = row["measures"][measure]["levels"]["3"]
            shown = [level for level in LEVELS if level in own]
            axis.plot(range(len(shown)), [own[level] for level in shown], "o-", markersize=3, label=row["name"],
                      color=plt.cm.tab20(number))  # fmt: skip
            axis.set_xticks(range(len(shown)), shown, rotation=30)
        axis.set_ylabel(measure)
    axes[1].legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def scaling(runs: Runs) -> Any:
    """The paper's Figure 5."""
    figure, axis = plt.subplots(figsize=(5, 3))
    for heading, colour in (("fact F1", BLUE), ("relation R", ORANGE), ("sub-kind R", GREEN)):
        points = [(n, runs.values("scaling", f"{n} images", "test", heading)) for n in SIZES]
        known = [(n, median(values)) for n, values in points if values]
        axis.plot([n for n, _ in known], [value for _, value in known], "o-", color=colour, label=heading)
    axis.set_xscale("log")
    axis.set_xticks(SIZES, [str(n) for n in SIZES])
    axis.minorticks_off()
    axis.set_xlabel("images in the gallery")
    axis.legend(frameon=False)
    return figure
