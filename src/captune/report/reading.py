"""Reading run directories. What is missing or broken becomes a note on the page, never an error."""

from __future__ import annotations

import shlex
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeGuard

from captune.errors import CaptuneError, ReportError
from captune.runs.run_dir import ROLES
from captune.utils.files import parse_yaml, read_file, read_json, read_jsonl

# What the page takes of a run that others may have written; beyond, a text is cut and a number is left out.
LONGEST_CAPTION = 5_000  # characters
LONGEST_TEXT = 1_000  # of names and notes
LONGEST_CONFIG = 100_000
LARGEST = 1e30

OF_A_RUN = ("config.yaml", "versions.json", "metrics.jsonl", "scores.json")
ROLE_LABELS = {
    "base": "before training",
    "zero": "no labels",
    "gt": "labels for the mapper only",
    "trained": "",
    "supervised": "labels: the ceiling",
    "other": "",
    "control": "",
}
# Runs of versions that wrote no role: the first phrase that occurs in the row's name, as whole words, decides.
_ROLES_BY_NAME = {
    "control": "control",
    "length": "control",
    "wrong image": "control",
    "forced opening": "control",
    "best of": "control",
    "base": "base",
    "fresh projector": "base",
    "supervised": "supervised",
    "sft": "supervised",
    "maximum likelihood": "supervised",
    "gt": "gt",
    "zero label": "zero",
    "vizer": "zero",
    "grpo": "trained",
    "scst": "trained",
    "sc captioner": "trained",
}


@dataclass(frozen=True)
class Row:
    """One captioner's result on one source: a line of the table and a line of every gallery card."""

    name: str
    role: str
    run: str
    source: str
    scores: dict[str, dict[str, Any]]
    captions: dict[str, str]  # image_id -> caption
    images_per_second: float | None = None
    trained_on: bool = False  # the images are training images
    rewarded: tuple[str, ...] = ()  # the scorers that it was rewarded by
    note: str | None = None  # beside its name; None: what its role says


@dataclass
class Run:
    """A run directory as far as it could be read. `notes` are sentences for the reader of the page."""

    name: str
    path: Path
    rows: list[Row] = field(default_factory=list)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    config_text: str = ""
    versions: dict[str, Any] = field(default_factory=dict)
    command: str = ""
    notes: list[str] = field(default_factory=list)
    bad_images: list[str] = field(default_factory=list)

    @property
    def trained(self) -> str:
        """The name of the row that this run made, where it has only one beside base and controls."""
        names = [row.name for row in self.rows if row.role not in ("base", "control")]
        return names[0] if len(names) == 1 and names[0] != self.name else ""


def role_of(name: str) -> str:
    """The role of a row that was written without one, by its name: for runs of earlier versions."""
    words = " ".join("".join(c if c.isalnum() else " " for c in name.lower()).split())
    return next((role for phrase, role in _ROLES_BY_NAME.items() if f" {phrase} " in f" {words} "), "other")


def read_lines(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """JSON objects of a file, one per line, and a sentence for every line that is not one, at most four."""
    problems: list[str] = []
    try:
        records = read_jsonl(path, problems=problems)
    except CaptuneError as error:
        return [], [f"{error}."]
    if len(problems) > 3:
        problems = [*problems[:3], f"{path.name} has {len(problems) - 3} more unreadable lines."]
    return records, problems


def is_run(folder: Path) -> bool:
    """Whether a folder has any file of a run directory."""
    return any(is_file(folder / name) for name in OF_A_RUN)


def read_run(path: Path, lacks: Collection[str] = ()) -> Run:
    """One run directory as far as it can be read.

    Args:
        path: the folder.
        lacks: files that its kind of run does not have.

    Raises:
        ReportError: `path` is not a folder; all else becomes a note of the run.
    """
    if not path.is_dir():
        raise ReportError(f"{path} is not a run directory: there is no such folder. Name a folder of runs/.")
    run = Run(name=path.resolve().name, path=path)
    if absent := [name for name in OF_A_RUN if name not in lacks and not is_file(path / name)]:
        run.notes.append(f"Not in this folder: {', '.join(absent)}.")
    run.versions = _read_json(run, "versions.json", "the versions are unknown")
    _read_config(run)
    if is_file(path / "metrics.jsonl"):
        run.metrics, problems = read_lines(path / "metrics.jsonl")
        run.notes += problems
    _read_rows(run, _read_json(run, "scores.json", "there are no scores and no captions to show"))
    if not run.rows and not run.metrics:
        run.notes.append("Neither scores nor training metrics were found: did the run finish its first step?")
    run.command = _command(run)
    return run


def _read_json(run: Run, name: str, consequence: str) -> dict[str, Any]:
    path = run.path / name
    if not is_file(path):
        return {}
    try:
        content = read_json(path, error=ReportError)
    except ReportError as error:
        run.notes.append(f"{str(error).replace(str(path), name, 1)}: {consequence}.")
        return {}
    if isinstance(content, dict):
        return content
    run.notes.append(f"{name} does not hold a JSON object: {consequence}.")
    return {}


def _read_config(run: Run) -> None:
    path = run.path / "config.yaml"
    if not is_file(path):
        return
    try:
        text = read_file(path, error=ReportError).decode("utf-8", "replace")
    except ReportError as error:
        run.notes.append(f"{error}.")
        return
    run.config_text = text[:LONGEST_CONFIG]
    if len(text) > LONGEST_CONFIG:
        run.notes.append(f"config.yaml has {len(text):,} characters; the first {LONGEST_CONFIG:,} are shown.")
        return
    try:
        content = parse_yaml(text, "config.yaml", error=ReportError)
    except ReportError as error:
        run.notes.append(f"{error}; it is shown as text.")
        return
    run.config = content if isinstance(content, dict) else {}


def _read_rows(run: Run, content: dict[str, Any]) -> None:
    source = text_of(content.get("source"))
    run.bad_images += _bad_images(content)
    if content and not source:
        run.notes.append('scores.json names no "source": images and references cannot be shown.')
    rows = content.get("rows") or []
    if not isinstance(rows, list):
        run.notes.append("The rows of scores.json are no list: there are no scores and no captions to show.")
        rows = []
    for position, entry in enumerate(rows, start=1):
        if not isinstance(entry, dict) or not text_of(entry.get("name")):
            run.notes.append(f"Row {position} of scores.json has no name; it was left out.")
            continue
        name = text_of(entry["name"])
        scores = _read_scores(run, name, entry.get("scores") or {})
        speed, role = entry.get("images_per_second"), entry.get("role")
        run.rows.append(
            Row(
                name=name,
                role=role if isinstance(role, str) and role in ROLES else role_of(name),
                run=run.name,
                source=text_of(entry.get("source")) or source,
                scores=scores,
                captions=_read_captions(run, name, entry.get("captions")),
                images_per_second=float(speed) if is_number(speed) else None,
                trained_on=entry.get("trained_on") is True,
                note=text_of(note) if (note := entry.get("note")) else None,
                rewarded=tuple(map(text_of, names)) if isinstance(names := entry.get("rewarded"), list) else (),
            )
        )


def _read_scores(run: Run, name: str, scores: Any) -> dict[str, dict[str, Any]]:
    """{scorer: {values, interval, signature, n}}: numbers, pairs of numbers and a text, whatever the file holds."""
    read: dict[str, dict[str, Any]] = {}
    odd = 0 if isinstance(scores, dict) else 1
    for scorer, result in scores.items() if isinstance(scores, dict) else ():
        values, interval = (
            result.get(key) or {} if isinstance(result, dict) else None for key in ("values", "interval")
        )
        if not isinstance(values, dict) or not isinstance(interval, dict):
            odd += 1
            continue
        numbers = {text_of(figure): value for figure, value in values.items() if is_number(value)}
        odd += sum(value is not None for value in values.values()) - len(numbers)
        pairs = {
            text_of(figure): pair for figure, pair in interval.items() if isinstance(pair, list) and len(pair) == 2
        }
        kept = {"values": numbers, "interval": pairs, "signature": text_of(result.get("signature"))}
        read[text_of(scorer)] = kept | ({"n": n} if isinstance(n := result.get("n"), int) else {})
    if odd:
        run.notes.append(f"{odd} scores of “{name}” are no numbers; they were left out.")
    return read


def _read_captions(run: Run, name: str, relative: Any) -> dict[str, str]:
    if not relative:  # a row quoted from elsewhere: figures only
        return {}
    path = run.path / str(relative)
    if not is_file(path):
        relative = text_of(relative)
        run.notes.append(f"The captions of “{name}” ({relative}) are missing: no examples of it.")
        return {}
    records, problems = read_lines(path)
    run.notes += problems
    captions, cut = {}, 0
    for record in records:
        if isinstance(record.get("caption"), str) and "image_id" in record:
            captions[text_of(record["image_id"])] = whole(record["caption"][:LONGEST_CAPTION])
            cut += len(record["caption"]) > LONGEST_CAPTION
        elif record.get("error") or record.get("bad_image"):
            run.bad_images += _bad_images({"bad_images": [record]})
    if cut:
        run.notes.append(
            f"{cut} captions of “{name}” are shown and compared by their first {LONGEST_CAPTION:,} characters."
        )
    return captions


def _bad_images(content: dict[str, Any]) -> list[str]:
    """Bad images as "item: why", from a list of strings or of objects, or a mapping item -> why."""
    entries = content.get("bad_images") or []
    if isinstance(entries, dict):
        return [text_of(f"{item}: {why}") for item, why in entries.items()]
    lines = []
    for entry in entries if isinstance(entries, list) else []:
        if isinstance(entry, dict):
            item = entry.get("item") or entry.get("image_id") or entry.get("path") or "an unnamed image"
            why = entry.get("why") or entry.get("error") or entry.get("bad_image")
            lines.append(text_of(f"{item}: {why}" if why else item))
        else:
            lines.append(text_of(entry))
    return lines


def _command(run: Run) -> str:
    """The command that made the run: as recorded, or else rebuilt from the configuration's own path."""
    for record in (run.config, run.versions):
        recorded = record.get("command")
        if isinstance(recorded, str) and recorded.strip():
            return recorded.strip()
        if isinstance(recorded, list) and recorded:
            return shlex.join(str(part) for part in recorded)
    verb = next((str(run.config[k]) for k in ("verb", "method") if run.config.get(k)), "")
    return shlex.join(["captune", verb, "--config", str(run.path / "config.yaml")]) if verb else ""


def is_number(value: Any) -> TypeGuard[float]:
    """True for an int or float (not a bool) that is finite, and no larger than a figure can be."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -LARGEST <= value <= LARGEST


def is_file(path: Path) -> bool:
    """Whether there is such a file; a name that no file can have is one that is not there."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def whole(text: str) -> str:
    """The text with a replacement for each half of a character, which UTF-8 cannot hold."""
    return text.encode("utf-8", "replace").decode("utf-8")


def text_of(value: Any) -> str:
    """A name or a note of a run's files; "" for nothing."""
    return whole(str(value)[:LONGEST_TEXT]) if value or value == 0 else ""


def group_rows(runs: list[Run]) -> dict[str, list[Row]]:
    """Rows by source, in table order (base first, controls last); a row that several runs share appears once.

    It has the figures of all of them. Rows of the same name that differ get their run's name in theirs. The source with
    most rows that are no controls comes first: it is the one the page is about.
    """
    groups: dict[str, list[Row]] = {}
    for row in (row for run in runs for row in run.rows):
        group = groups.setdefault(row.source, [])
        same_name = [other for other in group if other.name == row.name or other.name.startswith(f"{row.name} (")]
        shared = next((other for other in same_name if _same_result(row, other)), None)
        if shared is not None:  # a run scores by what it was rewarded by, too
            group[group.index(shared)] = replace(shared, scores=row.scores | shared.scores)
            continue
        group.append(replace(row, name=f"{row.name} ({row.run})") if same_name else row)
    for group in groups.values():
        group.sort(key=lambda row: list(ROLES).index(row.role))
    return dict(
        sorted(groups.items(), key=lambda item: (-sum(row.role != "control" for row in item[1]), -len(item[1])))
    )


def split_controls(groups: dict[str, list[Row]]) -> tuple[dict[str, list[Row]], list[Row]]:
    """The groups without the controls of other sources than the first, and these controls: figures to quote."""
    first = next(iter(groups), "")
    elsewhere = [row for source, rows in groups.items() if source != first for row in rows if row.role == "control"]
    rest = {
        source: [row for row in rows if source == first or row.role != "control"] for source, rows in groups.items()
    }
    return {source: rows for source, rows in rest.items() if rows}, elsewhere


def _same_result(a: Row, b: Row) -> bool:
    figures, others = ({name: score.get("values") for name, score in row.scores.items()} for row in (a, b))
    if not (a.captions and b.captions):
        return figures == others
    return a.captions == b.captions and all(figures[name] == others[name] for name in figures.keys() & others.keys())
