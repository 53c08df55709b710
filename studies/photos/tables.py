"""From the rows' files to results/tables.md: `python -m studies photos --tables`. Nothing is run.

Figures are means over seeds. An interval in brackets is a 95% bootstrap over the test images of the figure, or of the
difference to another row, averaged over seeds: for it, the scorer's rows of an image are averaged over the seeds first.
A share of the gap has a 95% t interval over seeds, as in `studies/zero_label`.
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np

from captune.data import read_jsonl
from captune.evaluation.statistics import Comparison, bootstrap_interval, paired
from captune.scorers import Scorer, load_scorer
from studies._lib.rows import shared
from studies._lib.store import Store
from studies._lib.tables import ROLES, Seeds, markdown, page, spread
from studies.scorers import tables as scorer_study
from studies.scorers.evaluate import named

from .experiments import BAR, FILE, ROWS, SHARE, System

COLUMNS = shared(FILE, "columns")
BASES = {"cropped": "HAR stage 1", "refine": "stage 1", "zero": "base", "decoders": "greedy"}
SUPERVISED = "supervised"
GAPS = {"CIDEr-D": "cider", "detected F1": "detected"}
NO_GAP = "no gap"  # in place of a share, where supervision is not above the base
SCORERS: dict[str, Scorer] = {name: load_scorer(name) for name in ("cider", "detected", "chair")}  # sum up rows
FIGURES = {scorer.primary: name for name, scorer in SCORERS.items()}
RESAMPLES = 100_000  # with 2,000 the ends of intervals waver by .002, which decided bar 2
ENDINGS, DISTINCT = 0.02, 0.6  # bars
RANKING = Path(scorer_study.__file__).parent / "results"

INTRODUCTION = (
    "Made by `python -m studies photos --tables`. Means over the seeds; in brackets 95% intervals: of figures and of "
    "differences to the section's base a bootstrap over the test images (seeds' scores of an image averaged first), of "
    "shares of the gap a t interval over seeds (*no gap*: that to supervision does not lie above 0). They are not "
    "corrected for the number of comparisons. *clip* is weak: {recall}. It judges rows that were "
    "rewarded by it, too, and so does *detected*. CHAIR_i is the share of the objects in captions that no reference "
    "names: less is better, and no row is rewarded by it."
)


class Results(Seeds):
    """The records of finished rows, with what scorers made of each image."""

    def __init__(self, records: list[dict[str, Any]], rows: list[System], folder: Path) -> None:
        super().__init__(records, rows)
        self.folder = folder / "captions"
        self._kept: dict[Path, list[dict[str, Any]]] = {}
        self._compared: dict[tuple[str, str, str], Comparison] = {}

    def by_image(self, name: str, scorer: str, seeds: list[int]) -> np.ndarray:
        """The scorer's rows (N, D) of a row of the study, averaged over seeds."""
        return np.mean([[line[scorer] for line in self._lines(self.records[name, seed])] for seed in seeds], axis=0)

    def _lines(self, record: dict[str, Any]) -> list[dict[str, Any]]:
        file = self.folder / record["captions_file"]
        if file not in self._kept:
            self._kept[file] = read_jsonl(file)
        return self._kept[file]

    def both(self, *names: str) -> list[int]:
        return [seed for seed in self.seeds if all((name, seed) in self.records for name in names)]

    def interval(self, name: str, scorer: str, figure: str) -> str:
        own = self.by_image(name, scorer, self.both(name))
        found = bootstrap_interval(SCORERS[scorer], own, [figure], resamples=RESAMPLES, seed=0)
        return bracket(found.get(figure))

    def against(self, name: str, base: str, scorer: str) -> Comparison | None:
        """A row against another on the seeds that both have."""
        seeds = self.both(name, base)
        if not seeds or name == base:
            return None
        key = name, base, scorer
        if key not in self._compared:  # several tables ask
            rows = (self.by_image(own, scorer, seeds) for own in (name, base))
            self._compared[key] = paired(*rows, SCORERS[scorer], resamples=RESAMPLES)
        return self._compared[key]


def bracket(interval: tuple[float, float] | list[float] | None, digits: int = 3) -> str:
    return "" if interval is None else f" [{interval[0]:.{digits}f}, {interval[1]:.{digits}f}]"


def change(found: Comparison | None, figure: str) -> str:
    """A difference with its interval."""
    return "-" if found is None else f"{found.difference[figure]:+.3f}{bracket(found.interval.get(figure))}"


def above(found: Comparison | None, figure: str, bound: float = 0.0) -> str:
    """Whether the interval of a difference lies above a bound."""
    if found is None or figure not in found.interval:
        return "-"
    low, high = found.interval[figure]
    return "yes" if low > bound else "no" if high <= bound else "open"


def figures_table(results: Results, split: str) -> str:
    lines = []
    for row in results.rows:
        cells = []
        for key, digits in COLUMNS.values():
            scorer = FIGURES.get(key)
            interval = results.interval(row.name, scorer, key) if scorer and split == "test" else ""
            cells.append(spread(results.over([row.name], split, key), digits) + interval)
        records = results.of(row.name)
        minutes = fmean(record["training_seconds"] for record in records) / 60
        chosen = ", ".join(sorted({record["chosen"] for record in records if "chosen" in record}))
        name = f"{row.name} ({chosen})" if chosen else row.name
        lines.append([name, role(row), *cells, str(len(records)), f"{minutes:.0f}"])
    return markdown(["", "", *COLUMNS, "seeds", "processor minutes"], lines)


def role(row: System) -> str:
    return ROLES.get(row.role, "" if row.role == "other" else row.role)


def differences_table(results: Results, base: str, *, gaps: bool = False) -> str:
    """What each row has more than the base, and the share of the gap to supervision."""
    lines = []
    there = {key: gaps and has_gap(results, base, key) for key in GAPS.values()}
    for row in results.rows:
        if row.name == base:
            continue
        words, objects, false = (results.against(row.name, base, scorer) for scorer in SCORERS)
        cells = [change(words, "cider"), *(change(objects, key) for key in ("precision", "recall", "detected"))]
        cells.append(change(false, "chair_i"))
        if gaps:
            shares = {key: results.share(row.name, base, SUPERVISED, "test", key) for key in GAPS.values()}
            cells += ["-" if own is None else str(own) if there[key] else NO_GAP for key, own in shares.items()]
        lines.append([row.name, role(row), *cells])
    head = ["CIDEr-D", "detected P", "R", "F1", "CHAIR_i", *(f"share of the {name} gap" for name in GAPS if gaps)]
    return markdown([f"more than {base}", "", *head], lines)


def has_gap(results: Results, base: str, key: str) -> bool:
    """Whether the interval of the gap to supervision lies above 0."""
    return above(results.against(SUPERVISED, base, key), key) == "yes"


def bar_1(results: Results) -> str:
    lines = []
    for row in results.rows:
        words, endings, distinct = (results.over([row.name], "test", k) for k in ("cider", "bad_endings", "distinct"))
        reached = median(words) >= BAR and median(endings) <= ENDINGS and median(distinct) >= DISTINCT
        cells = [f"{median(values):.3f}" for values in (words, endings, distinct)]
        lines.append([row.name, *cells, "yes" if reached else "no"])
    head = [f"CIDEr-D (bar: {BAR})", f"bad endings ({ENDINGS})", f"distinct captions / images ({DISTINCT})", "reached"]
    return markdown(["median of the seeds", *head], lines)


def bar_2(results: Results) -> str:
    base, lines = BASES["refine"], []
    for row in results.rows:
        if row.kind == "scst":
            words, objects = (results.against(row.name, base, scorer) for scorer in ("cider", "detected"))
            endings = fmean(results.over([row.name], "test", "bad_endings"))
            down = "-" if objects is None else "no" if objects.interval["precision"][1] >= 0 else "yes"
            lines.append([row.name, above(words, "cider"), "yes" if endings <= ENDINGS else "no", down])
    head = ["CIDEr-D up (interval above 0)", f"bad endings <= {ENDINGS}", "detected precision down (interval below 0)"]
    return markdown(["", *head], lines)


def bar_3(results: Results) -> str:
    base, lines = BASES["zero"], []
    gap = has_gap(results, base, "cider")
    for row in results.rows:
        if row.role in ("zero", "outside", "control"):
            words, objects = (results.against(row.name, base, scorer) for scorer in ("cider", "detected"))
            share = results.share(row.name, base, SUPERVISED, "test", "cider")
            closed = "-" if share is None else NO_GAP if not gap else "yes" if share.mean >= SHARE else "no"
            lines.append([row.name, role(row), above(words, "cider"), above(objects, "detected"), closed])
    return markdown(["", "", "CIDEr-D up", "detected F1 up", f"closes {SHARE} of the CIDEr-D gap"], lines)


def scorers_table(results: Results) -> str:
    """The scorers by tau, beside their rank in the scorer study."""
    facts = json.loads((RANKING / "truth.json").read_text())["truth"]
    runs = json.loads((RANKING / "storybook.json").read_text())
    known = {name: scorer_study.ranking(run["scores"], facts)["pairs"] for name, run in runs.items()}
    places = {name: place for place, name in enumerate(sorted(known, key=lambda name: -known[name]), start=1)}

    def figure(row: System, key: str) -> float | None:
        found = results.over([row.name], "test", key)
        return fmean(found) if found else None  # a scorer that says the same of all captions has none

    lines = []
    tau = {row.name: figure(row, "tau_b") for row in results.rows}
    for row in sorted(results.rows, key=lambda row: (tau[row.name] is None, -(tau[row.name] or 0.0))):
        record = results.of(row.name)[0]
        name = named(row.reward)
        intervals, keys = record["interval"]["test"], ("tau_b", "pairwise_accuracy")
        figures = [(figure(row, key), bracket(intervals.get(key))) for key in keys]
        cells = ["-" if value is None else f"{value:.3f}{interval}" for value, interval in figures]
        there = [f"{known[name]:.3f}", f"{places[name]} of {len(places)}"] if name in known else ["-", "-"]
        judged = record["judged"]
        lines.append([row.name, *cells, f"{judged['captions']} of {judged['images']}", *there])
    head = ["tau-b with CIDEr-D", "right pairs", "captions of images", "right pairs on storybook", "rank there"]
    return markdown(["scorer", *head], lines)


def watch_table(parts: list[Results]) -> str:
    """What the runs' gates and monitors said, and how the reward rose on what they learn from."""
    lines = []
    for results in parts:
        for row in results.rows:
            for record in results.of(row.name):
                if watch := record.get("watch"):
                    gate = watch.get("gate")
                    verdict = "-" if gate is None else "passed" if gate["passed"] else "; ".join(gate["problems"])
                    alerts = [f"step {alert['step']}: {alert['text']}" for alert in watch["alerts"]]
                    learned = " to ".join(f"{value:.3f}" for value in watch.get("reward", ())) or "not kept"
                    seen = [verdict, learned, str(watch["evaluations"]), "; ".join(alerts) or "none"]
                    lines.append([f"{row.section}: {row.name}", str(record["seed"]), *seen])
    head = ["", "seed", "gate", "reward, first and last quarter of the steps", "evaluations", "alerts"]
    return markdown(head, lines, align="---")


def write(folder: Path) -> list[Path]:
    """Tables of what is there."""
    found = {section: Results(Store(folder, [section]).rows, rows, folder) for section, rows in ROWS.items()}
    parts: list[tuple[str, str]] = []

    def add(section: str, heading: str, make: Any, *given: Any, **more: Any) -> None:
        if found[section].rows:
            parts.append((heading, make(found[section], *given, **more)))

    add("rows", "Bar 1: stage 1", bar_1)
    add("rows", "Stage 1 on the test images", figures_table, "test")
    add("cropped", "Stage 1 with two rows of choices", figures_table, "test")
    add("cropped", "Stage 1 with two rows of choices, differences", differences_table, BASES["cropped"])
    add("refine", "Bar 2: SCST", bar_2)
    add("refine", "Stage 2", figures_table, "test")
    add("refine", "Stage 2, differences", differences_table, BASES["refine"])
    add("crops", "Bar 2 once more: SCST on crops that stage 1 has not seen", bar_2)
    add("crops", "Stage 2 on crops", figures_table, "test")
    add("crops", "Stage 2 on crops, differences", differences_table, BASES["refine"])
    add("zero", "Bar 3: without labels", bar_3)
    add("zero", "Without labels", figures_table, "test")
    add("zero", "Without labels, differences", differences_table, BASES["zero"], gaps=True)
    add("longer", "Four times as many steps", figures_table, "test")
    add("longer", "Four times as many steps, differences", differences_table, BASES["zero"])
    add("kin", "Rewards that see photos of Flickr8k alone", figures_table, "test")
    add("kin", "Rewards that see photos of Flickr8k alone, differences", differences_table, BASES["zero"])
    add("decoders", "Decoders", figures_table, "test")
    add("decoders", "Decoders, differences", differences_table, BASES["decoders"])
    add("scorers", "Scorers that need no label, and CIDEr-D", scorers_table)
    rewarded = [found[section] for section in ("refine", "crops", "sums", "zero", "longer", "kin")]
    if any("watch" in record for results in rewarded for record in results.records.values()):
        parts.append(("What gates and monitors said", watch_table(rewarded)))
    add("choices", "Choices, on images of their own", figures_table, "choices")
    add("sums", "Sums of rewards, on the images for choices", figures_table, "choices")
    recalls = [record["recall"] for own in found.values() for record in own.records.values() if "recall" in record]
    recall = "not measured" if not recalls else (
        f"R@1 on the images for choices {recalls[-1]['text_to_image']:.0%} text to image, "
        f"{recalls[-1]['image_to_text']:.0%} image to text"
    )  # fmt: skip
    return [page("Tables of the photo study", INTRODUCTION.format(recall=recall), parts, folder / "tables.md")]
