"""results/*.json -> results/tables.md: how well each scorer separates, ranks and notices."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import rankdata, spearmanr

from captune.storybook.changes import CHANGES

Scores = dict[str, list[float | None]]


def auc(right: Any, wrong: Any) -> float:
    """P(right > wrong) over all pairs, ties counting half."""
    ranks = rankdata(np.concatenate([right, wrong]))
    return float((ranks[: len(right)].sum() - len(right) * (len(right) + 1) / 2) / (len(right) * len(wrong)))


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


def storybook(results: Path) -> list[str]:
    known = json.loads((results / "truth.json").read_text())
    runs = json.loads((results / "storybook.json").read_text())
    facts = known["truth"]
    rows = {name: ranking(run["scores"], facts) for name, run in runs.items()}
    order = sorted(rows, key=lambda name: -rows[name]["pairs"])
    lines = [f"## Storybook: {len(facts['reference'])} images, {len(facts)} writers", "",
             "Right pairs: of two captions of one image whose fact F1 differ by 0.1 or more, how often the truer one "
             "scores higher (ties half; 95% interval over images). rho: Spearman over all captions, with F1, "
             "precision, recall and the number of false facts. AUC: a reference against another image's. "
             "METEOR's milliseconds are those of Python, not of Java.", "",
             "| scorer | right pairs | | rho F1 | rho precision | rho recall | rho false | AUC | CPU ms per caption |",
             "|---|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for name in order:
        row, run = rows[name], runs[name]
        low, high = row["interval"]
        number = sum(v is not None for own in run["scores"].values() for v in own)
        separation = auc(run["scores"]["reference"], run["scores"]["wrong image"])
        lines.append(f"| {name} | {row['pairs']:.3f} | {low:.3f}-{high:.3f} | {row['f1']:.2f} | {row['precision']:.2f} "
                     f"| {row['recall']:.2f} | {row['false']:.2f} | {separation:.3f} | "
                     f"{1000 * run['seconds'] / number:.2f} |")  # fmt: skip
    lines += ["", "How often the reference scores above the same caption with one fact changed (0.5: not noticed):", "",
              "| scorer | " + " | ".join(CHANGES) + " | cut short |", "|---" * (len(CHANGES) + 2) + "|"]  # fmt: skip
    for name in order:
        own = runs[name]["scores"]
        shares = [preferred(own["reference"], own[f"changed {what}"]) for what in CHANGES]
        shares.append(preferred(own["reference"], own["cut short"]))
        lines.append(f"| {name} | " + " | ".join(f"{share:.2f}" for share, _ in shares) + " |")
    numbers = [sum(v is not None for v in known["captions"][f"changed {what}"]) for what in CHANGES]
    lines += [
        "",
        "Images with such a change: " + ", ".join(f"{what} {n}" for what, n in zip(CHANGES, numbers, strict=True)),
    ]
    return [*lines, "", *signatures(runs)]


def flickr8k(results: Path) -> list[str]:
    runs = json.loads((results / "flickr8k.json").read_text())
    n = len(next(iter(runs.values()))["scores"]["reference"])
    lines = [f"## Flickr8k: {n} images, a human caption against another image's", "",
             "| scorer | AUC | 95% interval | right above wrong, image by image | images | CPU ms per caption |",
             "|---|---|---|---|---|---|"]  # fmt: skip
    rows = []
    for name, run in runs.items():
        pairs = zip(run["scores"]["reference"], run["scores"]["wrong image"], strict=True)
        right, wrong = zip(*[(a, b) for a, b in pairs if a is not None and b is not None], strict=True)
        low, high = interval(np.array([right, wrong]).T, lambda v: auc(v[:, 0], v[:, 1]))
        share, _ = preferred(right, wrong)
        rows.append((auc(right, wrong), f"| {name} | {auc(right, wrong):.4f} | {low:.4f}-{high:.4f} | {share:.4f} | "
                     f"{len(right)} | {1000 * run['seconds'] / (2 * n):.2f} |"))  # fmt: skip
    lines += [line for _, line in sorted(rows, reverse=True)]
    return [*lines, "", *signatures(runs)]


def signatures(runs: dict[str, Any]) -> list[str]:
    return [f"- `{name}`: `{run['signature']}`" for name, run in runs.items()]


def write(results: Path) -> None:
    lines = ["# Tables of the scorer study", "", "Written by studies/scorers/run.py; do not edit.", ""]
    if (results / "storybook.json").is_file():
        lines += [*storybook(results), ""]
    if (results / "flickr8k.json").is_file():
        lines += [*flickr8k(results), ""]
    (results / "tables.md").write_text("\n".join(lines))
