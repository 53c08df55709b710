"""Small SVG files; the same rows give the same bytes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from .tables import GAPS, Runs

BLUE, ORANGE, GREY, GREEN = "#2f6fb0", "#d9822b", "#9aa0a6", "#3c8d5a"
SPLITS = {"test": BLUE, "ood": ORANGE}
STYLE: Any = {
    "svg.hashsalt": "captune",
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.constrained_layout.use": True,
}


def save(file: Path, draw: Callable[..., Any], *given: Any, **more: Any) -> Path:
    """Writes the figure that a function draws."""
    with plt.rc_context(STYLE):
        figure = draw(*given, **more)
        figure.savefig(file, metadata={"Date": None})
        plt.close(figure)
    return file


def gap_axes(axes: Any, names: Sequence[str], *marks: float) -> None:
    """What both plots of gaps have: lines at 0, at 1 and at `marks`, a name per row, the first row on top."""
    for axis, heading in zip(axes, GAPS, strict=True):
        axis.axvline(1, color=GREY, linestyle="--", linewidth=1)
        for mark in marks:
            axis.axvline(mark, color=GREY, linestyle=":", linewidth=1)
        axis.axvline(0, color="black", linewidth=0.8)
        axis.set_xlabel(f"share of the {heading} gap closed (1: supervised)")
        axis.set_yticks(range(len(names)), names)
    axes[0].invert_yaxis()


def gap_bars(runs: Runs, rows: Sequence[tuple[str, str]], *, margin: float, legend: str = "best") -> Any:
    """Gap closed on test and ood: a bar for the median, a dot for each base and seed."""
    figure, axes = plt.subplots(1, 2, figsize=(9, margin + 0.42 * len(rows)), sharey=True)
    for axis, heading in zip(axes, GAPS, strict=True):
        for shift, (split, colour) in zip((-0.19, 0.19), SPLITS.items(), strict=True):
            for index, (section, name) in enumerate(rows):
                gaps = runs.gaps(section, name, split, heading)
                if gaps:
                    axis.barh(index + shift, median(gaps), 0.36, color=colour, label=split if index == 0 else None)
                    axis.plot(gaps, [index + shift] * len(gaps), "o", color="black", markersize=2.5)
    gap_axes(axes, [name for _, name in rows])
    axes[1].legend(frameon=False, loc=legend)
    return figure
