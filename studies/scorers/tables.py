"""results/*.json -> results/tables.md: how well each scorer separates, ranks and notices.

Made by `python -m studies scorers --tables`; nothing is run.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from captune.storybook.changes import CHANGES
from studies._lib.ranks import auc
from studies._lib.tables import markdown, page

Scores = dict[str, list[float | None]]


def preferred(a: list[float | None], b: list[float | None]) -> tuple[float, int]:
    """(the share of images whose a scores above b, ties counting half; how many images have both)."""
    pairs = [(x, y) for x, y in zip(a, b, strict=True) if x is not None and y is not None]
    return float(np.mean([(x > y) + 0.5 * (x == y) for x, y in pairs])) if pairs else float("nan"), len(pairs)


def interval(values: np.ndarray, figure: Any, resamples: int = 500) -> tuple[float, float]:
    """95% bootstrap interval of figure(values[images]); values: (images, ...)."""
    rng = np.random.default_rng(0)
    drawn = [figure(values[rng.integers(0, len(values), len(values))]) for _ in range(resamples)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(low), float(high)


def ranking(scores: Scores, facts: dict[str, list[Any]]) -> dict[str, Any]:
    """How a scorer's numbers go with the facts, over all writers and images, and between captions of one image."""
    writers = [writer for writer in facts if writer in scores]
    flat = [(v, f) for w in writers for v, f in zip(scores[w], facts[w], strict=True) if v is not None]
    values = [v for v, _ in flat]
    figures: dict[str, Any] = {}
    for key in ("precision", "recall", "f1", "false"):
        figures[key] = float(spearmanr(values, [f[key] for _, f in flat]).statistic)
    per_image = []  # (right, pairs) among the captions of an image whose F1 differ by 0.1 or more
    for i in range(len(next(iter(facts.values())))):
        own = [(scores[w][i], facts[w][i]["f1"]) for w in writers if facts[w][i] is not None]
        right = pairs = 0.0
        for a in range(len(own)):
            for b in range(a):
                if abs(own[a][1] - own[b][1]) >= 0.1:
                    gain = (own[a][0] - own[b][0]) * np.sign(own[a][1] - own[b][1])
                    right, pairs = right + (gain > 0) + 0.5 * (gain == 0), pairs + 1
        per_image.append((right, pairs))
    counts = np.array(per_image)
    figures["pairs"] = float(counts[:, 0].sum() / counts[:, 1].sum())
    figures["interval"] = interval(counts, lambda c: c[:, 0].sum() / max(1, c[:, 1].sum()))
    return figures


def storybook(results: Path) -> tuple[str, str]:
    """(heading, text)"""
    known = json.loads((results / "truth.json").read_text())
    runs = json.loads((results / "storybook.json").read_text())
    facts = known["truth"]
    rows = {name: ranking(run["scores"], facts) for name, run in runs.items()}
    order = sorted(rows, key=lambda name: -rows[name]["pairs"])
    figures, noticed = [], []
    for name in order:
        row, scores = rows[name], runs[name]["scores"]
        low, high = row["interval"]
        number = sum(v is not None for own in scores.values() for v in own)
        cells = [f"{row['pairs']:.3f}", f"{low:.3f}-{high:.3f}"]
        cells += [f"{row[key]:.2f}" for key in ("f1", "precision", "recall", "false")]
        cells.append(f"{auc(scores['reference'], scores['wrong image']):.3f}")
        figures.append([name, *cells, f"{1000 * runs[name]['seconds'] / number:.2f}"])
        others = [*(f"changed {what}" for what in CHANGES), "cut short"]
        noticed.append([name, *(f"{preferred(scores['reference'], scores[other])[0]:.2f}" for other in others)])
    counts = (f"{what} {sum(v is not None for v in known['captions'][f'changed {what}'])}" for what in CHANGES)
    rho = ("rho F1", "rho precision", "rho recall", "rho false")
    text = [
        "Right pairs: of two captions of one image whose fact F1 differ by 0.1 or more, how often the truer one "
        "scores higher (ties half; 95% interval over images). rho: Spearman over all captions, with F1, "
        "precision, recall and the number of false facts. AUC: a reference against another image's. "
        "METEOR's milliseconds are those of Python, not of Java.",
        "",
        markdown(["scorer", "right pairs", "", *rho, "AUC", "CPU ms per caption"], figures, align="---"),
        "",
        "How often the reference scores above the same caption with one fact changed (0.5: not noticed):",
        "",
        markdown(["scorer", *CHANGES, "cut short"], noticed, align="---"),
        "",
        "Images with such a change: " + ", ".join(counts),
        "",
        signatures(runs),
    ]
    return f"Storybook: {len(facts['reference'])} images, {len(facts)} writers", "\n".join(text)


def flickr8k(results: Path) -> tuple[str, str]:
    """(heading, text)"""
    runs = json.loads((results / "flickr8k.json").read_text())
    n = len(next(iter(runs.values()))["scores"]["reference"])
    rows = []
    for name, run in runs.items():
        pairs = zip(run["scores"]["reference"], run["scores"]["wrong image"], strict=True)
        right, wrong = zip(*[(a, b) for a, b in pairs if a is not None and b is not None], strict=True)
        low, high = interval(np.array([right, wrong]).T, lambda v: auc(v[:, 0], v[:, 1]))
        separation, (share, _) = auc(right, wrong), preferred(right, wrong)
        cells = [f"{separation:.4f}", f"{low:.4f}-{high:.4f}", f"{share:.4f}", f"{len(right)}"]
        rows.append((separation, [name, *cells, f"{1000 * run['seconds'] / (2 * n):.2f}"]))
    head = ["scorer", "AUC", "95% interval", "right above wrong, image by image", "images", "CPU ms per caption"]
    table = markdown(head, [line for _, line in sorted(rows, reverse=True)], align="---")
    return f"Flickr8k: {n} images, a human caption against another image's", f"{table}\n\n{signatures(runs)}"


def signatures(runs: dict[str, Any]) -> str:
    return "\n".join(f"- `{name}`: `{run['signature']}`" for name, run in runs.items())


def write(results: Path) -> Path:
    parts = [make(results) for make in (storybook, flickr8k) if (results / f"{make.__name__}.json").is_file()]
    introduction = "Written by `python -m studies scorers --tables`; do not edit."
    return page("Tables of the scorer study", introduction, parts, results / "tables.md")
