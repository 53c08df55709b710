"""The study's plots, small SVG files; the same rows give the same bytes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from study import BASE, MAIN_ROWS, SIZES, SUPERVISED, WIDTHS

if TYPE_CHECKING:
    from table import Runs

BLUE, ORANGE, GREY = "#2f6fb0", "#d9822b", "#9aa0a6"
STYLE = {
    "svg.hashsalt": "captune",
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.constrained_layout.use": True,
}


def save(figure: Any, file: Path) -> Path:
    figure.savefig(file, metadata={"Date": None})
    plt.close(figure)
    return file


def draw(runs: Runs, results: Path, *, controls: Sequence[str]) -> list[Path]:
    with plt.rc_context(STYLE):
        files = []
        trained = [n for n in MAIN_ROWS if n in runs.names("main") and n not in (BASE, SUPERVISED)]
        if any(runs.gaps("main", name, "test", "CIDEr-D") for name in trained):
            rows = [("main", n) for n in trained] + [("controls", n) for n in controls]
            files.append(save(gap_bars(runs, rows), results / "gap_closed.svg"))
        if runs.names("sweep"):
            files.append(save(heat_maps(runs), results / "sweep.svg"))
        if runs.names("choices"):
            files.append(save(choice_bars(runs), results / "choices.svg"))
        if runs.names("learning"):
            files.append(save(slot_bars(runs), results / "learning.svg"))
        return files


def gap_bars(runs: Runs, rows: Sequence[tuple[str, str]]) -> Any:
    """Gap closed on test and ood: a bar for the median, a dot for each base."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 0.5 + 0.42 * len(rows)), sharey=True)
    for axis, heading in zip(axes, ("CIDEr-D", "fact F1"), strict=True):
        for shift, split, colour in ((-0.19, "test", BLUE), (0.19, "ood", ORANGE)):
            for place, (section, name) in enumerate(rows):
                gaps = runs.gaps(section, name, split, heading)
                if gaps:
                    axis.barh(place + shift, median(gaps), 0.36, color=colour, label=split if place == 0 else None)
                    axis.plot(gaps, [place + shift] * len(gaps), "o", color="black", markersize=2.5)
        axis.axvline(1, color=GREY, linestyle="--", linewidth=1)
        axis.axvline(0, color="black", linewidth=0.8)
        axis.set_xlabel(f"share of the {heading} gap closed (1: supervised)")
        axis.set_yticks(range(len(rows)), [name for _, name in rows])
    axes[0].invert_yaxis()
    axes[1].legend(frameon=False, loc="lower right")
    return figure


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
    from learned import middle
    from probing import SLOTS

    names = runs.names("learning")
    figure, axes = plt.subplots(1, 2, figsize=(9, 3), sharey=True)
    for axis, split, title in zip(axes, ("differs", "agrees"), ("habit is wrong", "habit is right"), strict=True):
        shown = [s for s in SLOTS if any(middle(runs, n, "slots", f"{s}/{split}", "right") is not None for n in names)]
        width = 0.8 / max(1, len(names))
        for number, name in enumerate(names):
            values = [middle(runs, name, "slots", f"{s}/{split}", "right") or 0.0 for s in shown]
            colour = {BASE: GREY, SUPERVISED: ORANGE}.get(name, plt.cm.Blues(0.4 + 0.2 * number))
            places = [x + (number + 0.5) * width - 0.4 for x in range(len(shown))]
            axis.bar(places, values, width, label=name, color=colour)
        axis.set_xticks(range(len(shown)), shown)
        axis.set_title(f"slots where {title}")
        axis.set_ylim(0, 1)
    axes[0].set_ylabel("most probable filling is true")
    axes[0].legend(frameon=False, fontsize=8)
    return figure
