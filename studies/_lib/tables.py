"""From a study's rows to Markdown. Nothing is run here, and the same rows give the same bytes.

Two ways to sum up rows that were run more than once: `Runs` has medians and ranges over bases and seeds, `Seeds` means
with 95% t intervals over seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any, ClassVar, NamedTuple

import yaml

Record = dict[str, Any]
GAPS = ("CIDEr-D", "fact F1")
FIGURES = yaml.safe_load(Path(__file__).with_name("figures.yaml").read_text())  # {heading: (scorer, figure)}
#: what a row's role is called in tables; others by their own name
ROLES = {"zero": "zero-label", "outside": "zero-label, outside judge", "oracle": "truth as the reward"}
FACT_TYPES = ("object", "attribute", "size", "subkind", "relation", "background")


def markdown(head: Sequence[str], lines: Iterable[Sequence[str]], *, align: str = "---:") -> str:
    rows = [head, ["---"] + [align] * (len(head) - 1), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def page(title: str, introduction: str, parts: Iterable[tuple[str, str]], file: Path) -> Path:
    """Writes a page with a section for each (heading, text)."""
    lines = [f"# {title}", "", introduction]
    for heading, text in parts:
        lines += ["", f"## {heading}", "", text]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def number(values: Iterable[float | None], digits: int = 3) -> str:
    """The median; with more than one value, their range behind it."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    text = f"{median(known):.{digits}f}"
    return text if len(known) == 1 else f"{text} ({min(known):.{digits}f} to {max(known):.{digits}f})"


def spread(values: Sequence[float], digits: int) -> str:
    """Mean and standard deviation."""
    if not values:
        return "-"
    return f"{fmean(values):.{digits}f}" + (f" ± {stdev(values):.{digits}f}" if len(values) > 1 else "")


def claim(text: str, values: Sequence[float], holds: Callable[[float], bool]) -> list[str]:
    """A claim, what was measured, and whether it holds of the median."""
    return [text, number(values), "-" if not values else "yes" if holds(median(values)) else "**no**"]


CLAIMS = ["claim", "median (range)", "holds"]


class Runs:
    """The rows that count, by section, name, base and seed: of a row that was run more than once the last."""

    headings: ClassVar[tuple[str, ...]]
    main: ClassVar[str]  # the section of base and supervised row

    def __init__(self, rows: Iterable[Record]) -> None:
        self.rows = list({(r["section"], r["name"], r.get("base"), r["seed"]): r for r in rows}.values())

    def section(self, section: str, name: str | None = None) -> list[Record]:
        return [row for row in self.rows if row["section"] == section and name in (None, row["name"])]

    def names(self, section: str) -> list[str]:
        return list(dict.fromkeys(row["name"] for row in self.section(section)))

    def pairs(self, section: str) -> list[tuple[Any, int]]:
        return list(dict.fromkeys((row.get("base"), row["seed"]) for row in self.section(section)))

    def get(self, section: str, name: str, base: str | None, seed: int | None = None) -> Record | None:
        """The row of a base and seed; without a seed, the first of any."""
        found = (r for r in self.section(section, name) if r.get("base") == base and seed in (None, r["seed"]))
        return next(found, None)

    def figure(self, row: Record | None, split: str, heading: str) -> float | None:
        """Under a heading, or of any scorer that has a figure of that name."""
        scores = (row or {}).get("scores", {}).get(split, {})
        scorer, key = FIGURES.get(heading, (None, heading))
        found = (scores.get(name, {}).get("values", {}) for name in ([scorer] if scorer else scores))
        return next((values[key] for values in found if key in values), None)

    def values(self, section: str, name: str, split: str, heading: str) -> list[float]:
        """A figure of a row on each base and seed."""
        found = (self.figure(row, split, heading) for row in self.section(section, name))
        return [value for value in found if value is not None]

    def gap_by_seed(self, section: str, name: str, split: str, heading: str) -> dict[tuple[Any, int], float]:
        """The share of the gap from base to supervision that a row closes, by base and seed.

        Supervision has the row's seed; the base, which is not trained, any.
        """
        closed = {}
        for base, seed in self.pairs(section):
            low = self.get(self.main, "base", base, seed) or self.get(self.main, "base", base)
            trio = (low, self.get(self.main, "supervised", base, seed), self.get(section, name, base, seed))
            bottom, top, value = (self.figure(own, split, heading) for own in trio)
            if bottom is not None and top is not None and value is not None and top != bottom:
                closed[base, seed] = (value - bottom) / (top - bottom)
        return closed

    def gaps(self, section: str, name: str, split: str, heading: str) -> list[float]:
        return list(self.gap_by_seed(section, name, split, heading).values())

    def best(self, section: str, names: Iterable[str], heading: str) -> list[str]:
        """The one that is best on val, if there is any."""
        names = [name for name in names if name in self.names(section)]
        return [max(names, key=lambda name: median(self.values(section, name, "val", heading)))] if names else []

    def table(self, rows: Iterable[tuple[str, str]], split: str, headings: Iterable[str] | None = None) -> str:
        """A line per (section, name): figures and the gap closed."""
        headings, lines = list(headings or self.headings), []
        for section, name in rows:
            cells = [number(self.values(section, name, split, heading)) for heading in headings]
            gaps = [number(self.gaps(section, name, split, heading), 2) for heading in GAPS]
            lines.append([name, *cells, *gaps])
        return markdown(["", *headings, *(f"gap closed, {heading}" for heading in GAPS)], lines)

    def type_table(self, rows: Iterable[tuple[str, str]], split: str) -> str:
        """Precision and recall of each type of fact."""
        lines = []
        for own in rows:
            pairs = [[self.values(*own, split, f"{t}_{side}") for side in ("precision", "recall")] for t in FACT_TYPES]
            lines.append([own[1], *(" / ".join(f"{median(v):.2f}" if v else "-" for v in pair) for pair in pairs)])
        return markdown(["precision / recall", *FACT_TYPES], lines)

    def interval_table(self, rows: Iterable[tuple[str, Record]], untrained: str) -> str:
        """Each (label, row) with its 95% bootstrap intervals over images."""
        lines = []
        for label, row in rows:
            cells = [self.with_interval(row, split, heading) for split in ("test", "ood") for heading in GAPS]
            seconds = row.get("training_seconds")
            lines.append([label, *cells, f"{seconds:.0f}" if seconds else untrained])
        head = [f"{split} {heading}" for split in ("test", "ood") for heading in GAPS]
        return markdown(["", *head, "seconds to train"], lines)

    def with_interval(self, row: Record, split: str, heading: str) -> str:
        value, (scorer, key) = self.figure(row, split, heading), FIGURES[heading]
        if value is None:
            return "-"
        interval = row["scores"][split][scorer].get("interval", {}).get(key)
        return f"{value:.3f}" + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")


class Estimate(NamedTuple):
    """A mean over seeds with its 95% t interval, which one seed does not have."""

    mean: float
    low: float | None
    high: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate | None:
        if not values:
            return None
        mean = fmean(values)
        if len(values) == 1:
            return cls(mean, None, None)
        from scipy.stats import t as student

        half = float(student.ppf(0.975, len(values) - 1)) * stdev(values) / len(values) ** 0.5
        return cls(mean, mean - half, mean + half)

    def __str__(self) -> str:
        return f"{self.mean:.3f}" + (f" [{self.low:.3f}, {self.high:.3f}]" if self.low is not None else "")

    def __neg__(self) -> Estimate:
        return Estimate(-self.mean, *(value and -value for value in (self.high, self.low)))

    def above(self, bound: float) -> str:
        """Whether the interval lies above the bound: yes, no, or open."""
        if self.low is None or self.high is None:
            return "-"
        return "yes" if self.low >= bound else "no" if self.high < bound else "open"


class Seeds:
    """The records of finished rows, by name and seed, and those of `rows` that have one."""

    def __init__(self, records: Iterable[Record], rows: Sequence[Any]) -> None:
        names = {row.name for row in rows}
        self.records = {(record["name"], record["seed"]): record for record in records if record["name"] in names}
        self.rows = [row for row in rows if any(name == row.name for name, _ in self.records)]
        self.seeds = sorted({seed for _, seed in self.records})

    def of(self, name: str) -> list[Record]:
        return [self.records[name, seed] for seed in self.seeds if (name, seed) in self.records]

    def figure(self, name: str, seed: int, split: str, key: str) -> float | None:
        return self.records.get((name, seed), {}).get("scores", {}).get(split, {}).get(key)

    def over(self, names: Sequence[str], split: str, key: str, f: Callable[..., float | None] = float) -> list[float]:
        """f of the rows' figures on each seed where all of them are there, and f has a value."""
        found = ([self.figure(name, seed, split, key) for name in names] for seed in self.seeds)
        values = (f(*figures) for figures in found if None not in figures)
        return [value for value in values if value is not None]

    def more(self, a: str, b: str, split: str, key: str) -> Estimate | None:
        """What a has more than b."""
        return Estimate.of(self.over([a, b], split, key, lambda own, other: own - other))

    def mean(self, name: str, split: str, key: str) -> Estimate | None:
        return Estimate.of(self.over([name], split, key))

    def share(self, name: str, low: str, high: str, split: str, key: str) -> Estimate | None:
        """The share of the gap from the row `low` to the row `high` that a row closes, seed by seed."""

        def share(value: float, bottom: float, top: float) -> float | None:
            return (value - bottom) / (top - bottom) if top != bottom else None

        return Estimate.of(self.over([name, low, high], split, key, share))
