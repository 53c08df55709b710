"""The page about a curated set: what went where, examples of each decision, scores before and after, and the truth."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from markupsafe import Markup

from captune.errors import ReportError
from captune.report.page import asset, environment, write
from captune.report.truth import Truth, load_truth, try_image_uri
from captune.utils.files import read_json
from captune.utils.versions import command_line, versions

RECORD = "curation.json"  # of a folder that `captune.curation.run` wrote
VERDICTS = ("keep", "drop", "change", "move", "split")
CLASSES = ("states nothing that can be checked", "all true", "1 false", "2 false", "3 or more false")
_BINS = 24
_EXAMPLES = 4  # of each reason
_JUDGED = 50_000  # captions of a step that are compared with the truth
_AT_ONCE = 16_384


def is_curated(folder: Path) -> bool:
    """Whether a folder is a curated set."""
    return (folder / RECORD).is_file()


def render(folder: Path, output: Path, *, title: str | None = None) -> Path:
    """Write a self-contained HTML page about a curated set; return its path.

    Args:
        folder: what `captune curate` wrote.
        output: the HTML file to write (its folder is made when missing).
        title: the page's title; by default made from the folder's name.

    Raises:
        ReportError: the folder holds no finished curation, or its decisions are missing.
    """
    record = read_json(folder / RECORD, error=ReportError)
    if not isinstance(record, dict) or record.get("kind") != "curation":
        raise ReportError(f"{folder / RECORD} is no record of a curation")
    truths = {source: load_truth(source) for source in _sources(record)}
    steps = [_step(folder, record, number, truths) for number in range(len(record["records"]))]
    html = (
        environment()
        .from_string(asset("curation.html.j2"))
        .render(
            title=title or f"Curated: {folder.resolve().name}",
            record=record,
            steps=steps,
            verdicts=VERDICTS,
            classes=CLASSES,
            judged=_JUDGED,
            notes=list(dict.fromkeys(note for truth in truths.values() for note in truth.notes)),
            command=command_line(),
            versions=versions(),
            style=Markup(asset("page.css") + asset("curation.css")),
        )
    )
    return write(Path(output), html)


@dataclass
class _Example:
    """A caption, what was decided, and the image that it belongs to afterwards."""

    image_id: str
    image: str
    missing: str
    before: str
    after: list[str]
    moved_to: str
    other: str
    score: str


@dataclass
class _Reason:
    """A verdict with its reason."""

    verdict: str
    reason: str
    count: int
    share: float
    examples: list[_Example] = field(default_factory=list)


@dataclass
class _Step:
    """What the page says of a step."""

    record: Mapping[str, Any]
    settings: Mapping[str, Any]
    reasons: list[_Reason]
    histogram: list[tuple[float, float]]  # heights, 0 to 100, of all captions and of those that stay
    low: str = ""
    high: str = ""
    truth: list[tuple[str, int, int, int]] = field(default_factory=list)  # class, in, kept, out


def _sources(record: Mapping[str, Any]) -> Iterator[str]:
    """The source of the images that each step found, and of those that the last one left."""
    yield record["source"]
    for step in record["steps"]:
        for settings in step.values():
            if settings.get("images"):  # of `reassign`
                yield settings["images"]


def _step(folder: Path, record: Mapping[str, Any], number: int, truths: Mapping[str, Truth]) -> _Step:
    own = record["records"][number]
    settings = next(iter(record["steps"][number].values()))
    path = folder / "decisions" / f"{own['step']}.parquet"
    if not path.is_file():
        raise ReportError(f"{path} is missing: the page is made of it")
    sources = list(_sources({**record, "steps": record["steps"][:number]}))
    before = truths[sources[-1]]
    after = truths[settings["images"]] if settings.get("images") else before
    table = pq.read_table(path, columns=["verdict", "reason", "score"])
    verdict = np.array(table["verdict"].cast(pa.string()).to_pylist())
    reason = np.array(table["reason"].cast(pa.string()).fill_null("").to_pylist())
    score = table["score"].to_numpy()
    made = _Step(own, settings, [], *_histogram(score, verdict != "drop"))
    wanted: dict[int, int] = {}
    pairs = Counter(zip(verdict.tolist(), reason.tolist(), strict=True))
    for (said, why), count in sorted(pairs.items(), key=lambda pair: (VERDICTS.index(pair[0][0]), -pair[1])):
        made.reasons.append(_Reason(said, why, count, 100 * count / len(verdict)))
        members = np.flatnonzero((verdict == said) & (reason == why))
        members = members[np.argsort(score[members], kind="stable")]
        chosen = members[np.unique(np.linspace(0, len(members) - 1, _EXAMPLES).astype(int))]
        wanted |= dict.fromkeys(chosen.tolist(), len(made.reasons) - 1)
    classes = _Classes(before, after)
    for row, line in enumerate(_rows(path)):
        if row in wanted:
            made.reasons[wanted[row]].examples.append(_example(line, before, after))
        if row < _JUDGED and classes.known:
            classes.count(line)
        elif row >= _JUDGED and row > max(wanted):
            break
    made.truth = classes.table()
    return made


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=_AT_ONCE):
            yield from batch.to_pylist()


def _example(line: Mapping[str, Any], before: Truth, after: Truth) -> _Example:
    shown = line["moved_to"] or line["image_id"]
    image, missing = try_image_uri(after if line["moved_to"] else before, shown)
    score = "" if line["score"] is None else f"{line['score']:.4g}"
    return _Example(
        line["image_id"], image, missing, line["before"], line["after"] or [], line["moved_to"] or "",
        line["other"] or "", score,
    )  # fmt: skip


def _histogram(score: np.ndarray, stays: np.ndarray) -> tuple[list[tuple[float, float]], str, str]:
    """Heights of bins of equal width, of all and of what stays; nothing where all scores are equal, or missing."""
    known = np.isfinite(score)
    if not known.any() or score[known].min() == score[known].max():
        return [], "", ""
    low, high = float(score[known].min()), float(score[known].max())
    every, edges = np.histogram(score[known], _BINS, (low, high))
    left, _ = np.histogram(score[known & stays], edges)
    heights = [
        (round(100 * a / every.max(), 2), round(100 * b / every.max(), 2)) for a, b in zip(every, left, strict=True)
    ]
    return heights, f"{low:.4g}", f"{high:.4g}"


class _Classes:
    """Captions by how many false statements they make, before and after a step, where the exact truth is known.

    Args:
        before: of the images that the captions had.
        after: of those that moved captions have.
    """

    def __init__(self, before: Truth, after: Truth) -> None:
        self.before, self.after = before, after
        self.came, self.stayed, self.left = Counter[int](), Counter[int](), Counter[int]()

    @property
    def known(self) -> bool:
        """Whether there is a truth to compare with."""
        return bool(self.before.facts or self.after.facts)

    def count(self, line: Mapping[str, Any]) -> None:
        """Count a decision."""
        was = _class(self.before, line["image_id"], line["before"])
        if was is not None:
            self.came[was] += 1
            self.stayed[was] += line["verdict"] != "drop"
        if line["verdict"] == "drop":
            return
        truth = self.after if line["moved_to"] else self.before
        for text in line["after"] or [line["before"]]:
            now = _class(truth, line["moved_to"] or line["image_id"], text)
            if now is not None:
                self.left[now] += 1

    def table(self) -> list[tuple[str, int, int, int]]:
        """(class, captions that came, those of them that were not dropped, captions that left) of each class."""
        counts = [(name, self.came[i], self.stayed[i], self.left[i]) for i, name in enumerate(CLASSES)]
        return counts if any(itertools.chain(self.came.values(), self.left.values())) else []


def _class(truth: Truth, image_id: str, text: str) -> int | None:
    """An index into `CLASSES`; None where nothing is known of the image."""
    facts = truth.facts.get(image_id)
    if facts is None:
        return None
    stated = truth.scheme.statements(text, facts)
    return min(1 + sum(not one.true for one in stated), 4) if stated else 0
