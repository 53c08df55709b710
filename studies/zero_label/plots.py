"""The study's plot and its page of examples; the same rows give the same bytes."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from captune.report.truth import Truth, highlight, image_uri, load_truth
from studies._lib.plots import SPLITS, gap_axes, save
from studies._lib.tables import ROLES

from .experiments import SHOWN, SUPERVISED, Contender
from .tables import GAPS, TITLES, Results

PAGE = (Path(__file__).parent / "page.html").read_text()


def gap_plot(results: Results, file: Path) -> Path:
    return save(file, draw_gaps, results)


def draw_gaps(results: Results) -> Any:
    """Shares of the gap with their intervals, in and out of distribution."""
    shown = [row for row in results.rows if (row.trains or row.role == "control") and row.name != SUPERVISED]
    figure, axes = plt.subplots(1, 2, figsize=(9.5, 1 + 0.34 * len(shown)), sharey=True)
    for axis, key in zip(axes, GAPS.values(), strict=True):
        for shift, (split, colour) in zip((-0.14, 0.14), SPLITS.items(), strict=True):
            for index, row in enumerate(shown):
                share = results.gap(row, split, key)
                if share is not None:
                    half = 0.0 if share.high is None else share.high - share.mean
                    axis.errorbar(share.mean, index + shift, xerr=half, fmt="o", markersize=4, color=colour)
    gap_axes(axes, [row.name for row in shown], 0.95)
    dots = [plt.Line2D([], [], marker="o", linestyle="", color=colour) for colour in SPLITS.values()]
    figure.legend(dots, [TITLES[split] for split in SPLITS], loc="outside upper center", ncols=2, frameon=False)
    return figure


def examples(results: Results, file: Path) -> Path:
    """What every method says of the same images, side by side, false statements marked."""
    seed = results.seeds[0]
    rows = [row for row in results.rows if row.kind != "references" and (row.name, seed) in results.records]
    sections = []
    for split, count in SHOWN.items():
        truth = load_truth(results.records[rows[0].name, seed]["sources"][split])
        sections += [section(results, truth, rows, seed, split, index) for index in range(count)]
    file.write_text(PAGE.format(seed=seed, sections="\n".join(sections), **SHOWN), encoding="utf-8")
    return file


def section(results: Results, truth: Truth, rows: list[Contender], seed: int, split: str, index: int) -> str:
    image_id = list(truth.references)[index]
    lines = [f"<tr><th>reference</th><td>{escape(truth.references[image_id][0])}</td></tr>"]
    for row in rows:
        caption = results.records[row.name, seed]["captions"][split][index]
        words = "".join(
            f"<mark title='{escape(part.title)}'>{escape(part.text)}</mark>" if part.mark == "wrong" else
            escape(part.text) for part in highlight(truth, image_id, caption, None)
        )  # fmt: skip
        lines.append(f"<tr><th title='{ROLES.get(row.role, row.role)}'>{escape(row.name)}</th><td>{words}</td></tr>")
    table = "\n".join(lines)
    image = f"<img src='{image_uri(truth, image_id)}' alt='{escape(image_id)}'>"
    return f"<section>{image}<table>\n{table}\n</table></section>"
