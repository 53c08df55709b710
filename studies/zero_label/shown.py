"""The study's plot and its page of examples; the same rows give the same bytes."""

from __future__ import annotations

from html import escape
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from contenders import SUPERVISED, Row
from measured import SHOWN
from verdicts import GAPS, ROLES, SPLITS, Results

from captune.report.truth import Truth, highlight, image_uri, load_truth

COLOURS = {"test": "#2f6fb0", "ood": "#d9822b"}
STYLE = {
    "svg.hashsalt": "captune",
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.constrained_layout.use": True,
}
PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Zero-label training: examples</title>
<style>
body {{ font: 15px/1.45 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }}
section {{ display: flex; gap: 1.2rem; align-items: flex-start; border-top: 1px solid #ccc; padding: 1rem 0; }}
img {{ width: 14rem; flex: none; }}
th {{ text-align: left; font-weight: normal; color: #555; padding-right: 1rem; white-space: nowrap; }}
td, th {{ vertical-align: top; }}
mark {{ background: #ffd5cc; }}
</style>
<h1>Zero-label training: examples</h1>
<p>The first {test} test images and the first {ood} images out of distribution of seed {seed}; none was picked. What is
<mark>marked</mark> is false of the picture.</p>
{sections}
</html>
"""


def gap_plot(results: Results, file: Path) -> Path:
    """Shares of the gap with their intervals, in and out of distribution."""
    shown = [row for row in results.rows if row.trains or row.role == "control"]
    shown = [row for row in shown if row.name != SUPERVISED]
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, 2, figsize=(9.5, 1 + 0.34 * len(shown)), sharey=True)
        for axis, (heading, key) in zip(axes, GAPS.items(), strict=True):
            for shift, split in ((-0.14, "test"), (0.14, "ood")):
                for place, row in enumerate(shown):
                    gap = results.gap(row, split, key)
                    if gap is not None:
                        half = 0.0 if gap.high is None else gap.high - gap.mean
                        axis.errorbar(gap.mean, place + shift, xerr=half, fmt="o", markersize=4, color=COLOURS[split])
            axis.axvline(1, color="#9aa0a6", linestyle="--", linewidth=1)
            axis.axvline(0.95, color="#9aa0a6", linestyle=":", linewidth=1)
            axis.axvline(0, color="black", linewidth=0.8)
            axis.set_xlabel(f"share of the {heading} gap closed (1: supervised)")
            axis.set_yticks(range(len(shown)), [row.name for row in shown])
        axes[0].invert_yaxis()
        dots = [plt.Line2D([], [], marker="o", linestyle="", color=colour) for colour in COLOURS.values()]
        figure.legend(dots, [SPLITS[split] for split in COLOURS], loc="outside upper center", ncols=2, frameon=False)
        figure.savefig(file, metadata={"Date": None})
        plt.close(figure)
    return file


def examples(results: Results, file: Path) -> Path:
    """What every method says of the same images, side by side, false statements marked."""
    seed = results.seeds[0]
    told = [row for row in results.rows if row.kind != "references" and (row.name, seed) in results.records]
    sections = []
    for split, count in SHOWN.items():
        truth = load_truth(results.records[told[0].name, seed]["sources"][split])
        sections += [section(results, truth, told, seed, split, place) for place in range(count)]
    file.write_text(PAGE.format(seed=seed, sections="\n".join(sections), **SHOWN), encoding="utf-8")
    return file


def section(results: Results, truth: Truth, told: list[Row], seed: int, split: str, place: int) -> str:
    image_id = list(truth.references)[place]
    lines = [f"<tr><th>reference</th><td>{escape(truth.references[image_id][0])}</td></tr>"]
    for row in told:
        caption = results.records[row.name, seed]["captions"][split][place]
        words = "".join(
            f"<mark title='{escape(part.title)}'>{escape(part.text)}</mark>" if part.mark == "wrong" else
            escape(part.text) for part in highlight(truth, image_id, caption, None)
        )  # fmt: skip
        lines.append(f"<tr><th title='{ROLES.get(row.role, row.role)}'>{escape(row.name)}</th><td>{words}</td></tr>")
    table = "\n".join(lines)
    image = f"<img src='{image_uri(truth, image_id)}' alt='{escape(image_id)}'>"
    return f"<section>{image}<table>\n{table}\n</table></section>"
