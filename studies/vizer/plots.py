"""The study's plots, small SVG files; the same rows give the same bytes."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt

from studies._lib.plots import BLUE, GREY, ORANGE, gap_bars, save

from .experiments import BASE, MAIN_ROWS, SIZES, SUPERVISED, WIDTHS
from .probing import SLOTS

if TYPE_CHECKING:
    from .tables import Runs


def draw(runs: Runs, results: Path) -> list[Path]:
    trained = [n for n in MAIN_ROWS if n in runs.names("main") and n not in (BASE, SUPERVISED)]
    files = []
    if any(runs.gaps("main", name, "test", "CIDEr-D") for name in trained):
        rows = [("main", n) for n in trained] + [("controls", n) for n in runs.controls()]
        files.append(save(results / "gap_closed.svg", gap_bars, runs, rows, margin=0.5, legend="lower right"))
    for section, figure in (("sweep", heat_maps), ("choices", choice_bars), ("learning", slot_bars)):
        if runs.names(section):
            files.append(save(results / f"{section}.svg", figure, runs))
    return files


def heat_maps(runs: Runs) -> Any:
    """CIDEr-D by the mapper's width and the number of images that it was fitted on, as the paper's Figure 3."""
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.2))
    for axis, variant in zip(axes, ("GT", "G"), strict=True):
        cells = [[runs.values("sweep", f"{variant} {s} x {w}", "test", "CIDEr-D") for w in WIDTHS] for s in SIZES]
        grid = [[median(cell) if cell else float("nan") for cell in line] for line in cells]
        image = axis.imshow(grid, cmap="viridis", aspect="auto")
        for y, line in enumerate(grid):
            for x, value in enumerate(line):
                bright = image.norm(value) > 0.6
                colour = "black" if bright else "white"
                axis.text(x, y, f"{value:.2f}", ha="center", va="center", color=colour, fontsize=8)
        axis.set_xticks(range(len(WIDTHS)), [str(w) for w in WIDTHS])
        axis.set_yticks(range(len(SIZES)), [str(s) for s in SIZES])
        axis.set_xlabel("width of the mapper")
        axis.set_ylabel("images")
        axis.set_title(f"ViZer$_{{{variant}}}$, paper preset: CIDEr-D")
        figure.colorbar(image, ax=axis)
    return figure


def choice_bars(runs: Runs) -> Any:
    names = runs.names("choices")
    figure, axes = plt.subplots(1, 2, figsize=(9, 0.6 + 0.23 * len(names)), sharey=True)
    for axis, heading in zip(axes, ("CIDEr-D", "fact F1"), strict=True):
        values = [runs.values("choices", name, "val", heading) for name in names]
        middles = [median(own) if own else 0.0 for own in values]
        axis.barh(range(len(names)), middles, 0.7, color=[ORANGE if n == "preset" else BLUE for n in names])
        if "preset" in names:
            axis.axvline(middles[names.index("preset")], color=ORANGE, linestyle="--", linewidth=1)
        axis.set_yticks(range(len(names)), names)
        axis.set_xlabel(f"{heading} on val")
    axes[0].invert_yaxis()
    return figure


def slot_bars(runs: Runs) -> Any:
    """Share of slots filled rightly: all slots where habit differs from the truth, by captioner."""
    names = runs.names("learning")
    figure, axes = plt.subplots(1, 2, figsize=(9, 3), sharey=True)
    for axis, split, title in zip(axes, ("differs", "agrees"), ("habit is wrong", "habit is right"), strict=True):
        shown = [s for s in SLOTS if any(runs.middle(n, "slots", f"{s}/{split}", "right") is not None for n in names)]
        width = 0.8 / max(1, len(names))
        for number, name in enumerate(names):
            values = [runs.middle(name, "slots", f"{s}/{split}", "right") or 0.0 for s in shown]
            colour = {BASE: GREY, SUPERVISED: ORANGE}.get(name, plt.cm.Blues(0.4 + 0.2 * number))
            lefts = [x + (number + 0.5) * width - 0.4 for x in range(len(shown))]
            axis.bar(lefts, values, width, label=name, color=colour)
        axis.set_xticks(range(len(shown)), shown)
        axis.set_title(f"slots where {title}")
        axis.set_ylim(0, 1)
    axes[0].set_ylabel("most probable filling is true")
    axes[0].legend(frameon=False, fontsize=8)
    return figure
