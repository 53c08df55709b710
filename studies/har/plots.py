"""The study's plot, a small SVG file; the same rows give the same bytes."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean, median
from typing import Any

import matplotlib.pyplot as plt

from studies._lib.plots import BLUE, ORANGE, save
from studies._lib.tables import Seeds

from .experiments import BASE, DROPPED, HAR, SFT, ZEROCAP

__all__ = ["curves", "save"]

GUIDANCE = Path(__file__).parents[2] / "benchmarks" / "speed" / "decoding_guidance.json"


def curves(results: Seeds) -> Any:
    """Left: guidance scales, from the benchmark. Right: what a caption costs and what it is worth."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
    guidance = json.loads(GUIDANCE.read_text())
    for name, points in guidance["curves"].items():
        for kind, line in (("cfg", "o-"), ("contrastive", "s--")):
            own = [point for point in points if point["decoder"].startswith(kind) or point["scale"] == 1]
            x, y = ([point[key] for point in own] for key in ("cider", "clip"))
            style = {"color": BLUE if name == "supervised" else ORANGE, "alpha": 1 if kind == "cfg" else 0.5}
            left.plot(x, y, line, markersize=4, label=f"{name}, {kind}", **style)
            for point in own if kind == "cfg" else ():
                where = (point["cider"], point["clip"])
                left.annotate(f"{point['scale']:g}", where, (3, -10), textcoords="offset points", fontsize=7)
    left.set_xlabel("CIDEr-D")
    left.set_ylabel("CLIPScore (storybook-clip)")
    left.set_title(f"guidance scales, {guidance['images']}", fontsize=9)
    left.legend(frameon=False, fontsize=8)
    for row in results.rows:
        costs = [record["cost"]["forward_passes"] for record in results.of(row.name) if "cost" in record]
        if costs:
            where = median(costs), fmean(results.over([row.name], "test", "cider"))
            right.plot(*where, "o", markersize=5, color=BLUE if row.training else ORANGE)
            if row.name in (BASE, ZEROCAP, SFT, HAR) or row.decoder:
                label = row.name.replace(DROPPED, f"{SFT} + dropout")
                above = 5 if label != row.name else -6  # two lie side by side
                right.annotate(label, where, (6, above), textcoords="offset points", fontsize=7)
    right.set_xscale("log")
    right.set_xticks([3, 5, 10, 20, 50], labels=["3", "5", "10", "20", "50"])
    right.set_xticks([], minor=True)
    right.set_xlabel("cost of a caption, in forward passes")
    right.set_ylabel("CIDEr-D, test")
    right.set_title("blue: trained; orange: training-free", fontsize=9)
    return figure
