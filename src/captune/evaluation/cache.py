"""Rows that cost a model's pass are kept on disk, keyed by content, so that no caption is judged twice.

    <folder>/<digest of format and scorer>.jsonl      {"format": ..., "scorer": ...}, then a line per row:
                                                      {"key": ..., "row": [...]}

A row's key is a digest of the caption and of its entry in every column that the scorer reads (an image counts by its
pixels, whatever its name); the file's name is a digest of the scorer's identity, which names the model by all that
decides its answers (`captune.utils.hashing.identity`). Files of another format are not read.
Lines are appended as rows are made: a killed evaluation resumes where it was, and a torn last line is made again.
A folder that cannot be written (a full disk, no permission) costs what it would have kept, never a score.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from captune.errors import redact
from captune.scorers import Scorer
from captune.utils.hashing import pixels_digest
from captune.utils.progress import Bar

logger = logging.getLogger(__name__)
FORMAT = 2  # 1 knew models by their weights alone, and had no first line


class Cache:
    """Rows of the scorers that say `cached`.

    Args:
        folder: made when the first row is kept.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).expanduser()

    def rows(self, scorer: Scorer, captions: Sequence[str], columns: Mapping[str, Any]) -> np.ndarray:
        """`scorer.rows(captions, **columns)`, of which only what is not known is computed."""
        head = {"format": FORMAT, "scorer": redact(scorer.identity)}
        mark = hashlib.sha256(f"{FORMAT} {scorer.identity}".encode()).hexdigest()[:24]
        file = self.folder / f"{mark}.jsonl"
        known = self._read(file, head)
        entries = Bar(captions, desc=f"{scorer.name}: looking up", leave=False, show=len(captions) >= 2000)
        keys = [
            _key(caption, {name: column[i] for name, column in columns.items()}) for i, caption in enumerate(entries)
        ]
        new = {key: i for i, key in enumerate(keys) if key not in known}  # equal captions of equal images once
        if len(new) < len(set(keys)):
            logger.info("%s: %d of %d rows are known", scorer.name, len(keys) - len(new), len(keys))
        places = list(new.values())
        show = len(places) > scorer.kept_every
        with Bar(total=len(places), desc=scorer.name, unit="caption", leave=False, show=show) as bar:
            for start in range(0, len(places), scorer.kept_every):
                part = places[start : start + scorer.kept_every]
                chosen = {name: [column[i] for i in part] for name, column in columns.items()}
                made = scorer.rows([captions[i] for i in part], **chosen)
                fresh = {keys[i]: row.tolist() for i, row in zip(part, made, strict=True)}
                known |= fresh
                try:
                    self._append(file, head, fresh)
                except OSError as error:
                    why = error.strerror or error
                    logger.warning("%s: rows cannot be kept in %s: %s", scorer.name, self.folder, why)
                bar.update(len(part))
        return np.array([known[key] for key in keys], dtype=np.float64)

    def _read(self, file: Path, head: Mapping[str, Any]) -> dict[str, list[float]]:
        if not file.is_file():
            return {}
        known: dict[str, list[float]] = {}
        first, *lines = file.read_text(encoding="utf-8", errors="replace").split("\n")
        if _entry(first) != head:
            if first:
                logger.warning("%s is of another format or scorer and is not read; its captions are judged again", file)
            file.unlink()
            return {}
        for line in lines:
            entry = _entry(line)
            key, row = entry.get("key"), entry.get("row")
            if isinstance(key, str) and isinstance(row, list) and all(isinstance(x, int | float) for x in row):
                known[key] = row
            elif line:
                logger.warning("%s: a torn line is left out; its caption is judged again", file)
        sizes = {len(row) for row in known.values()}
        if len(sizes) > 1:
            logger.warning("%s holds rows of %s figures and is not read", file, " and ".join(map(str, sorted(sizes))))
            file.unlink()
            return {}
        return known

    def _append(self, file: Path, head: Mapping[str, Any], rows: Mapping[str, list[float]]) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a+b") as lines:
            if not lines.tell():
                lines.write(json.dumps(head).encode() + b"\n")
            elif not _ends_with_newline(lines):
                lines.write(b"\n")
            for key, row in rows.items():
                lines.write(json.dumps({"key": key, "row": row}).encode() + b"\n")


def _entry(line: str) -> dict[str, Any]:
    try:
        entry = json.loads(line)
    except ValueError:
        return {}
    return entry if isinstance(entry, dict) else {}


def _ends_with_newline(file: Any) -> bool:
    file.seek(-1, 2)
    return file.read(1) == b"\n"


def _key(caption: str, entries: Mapping[str, Any]) -> str:
    state = hashlib.sha256(json.dumps(caption).encode())
    for name in sorted(entries):
        state.update(b"\0" + name.encode() + b"\0")
        if name == "image":
            from captune.data.images import open_image

            state.update(pixels_digest(open_image(entries[name])))
        else:
            state.update(json.dumps(entries[name]).encode())
    return state.hexdigest()[:32]
