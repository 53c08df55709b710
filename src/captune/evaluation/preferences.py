"""Preferences between captions of an image, as files hold them.

A file of pairs has `image_id`, `chosen` and `rejected`, and often the image, as `captune pairs` writes it for TRL. A
table of battles, or an arena's votes, has ties too (`captune.data.judgements`).
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from captune.data.judgements import is_database, read_judgements
from captune.data.readers import nfc
from captune.errors import AnnotationError
from captune.evaluation.table import read_rows
from captune.utils.skipped import skip

_TABLES = (".jsonl", ".ndjson", ".parquet", ".csv")


class Pair(NamedTuple):
    """Two captions of an image.

    Attributes:
        image_id: the image.
        chosen: the better caption.
        rejected: the other.
    """

    image_id: str
    chosen: str
    rejected: str


class Preference(NamedTuple):
    """What was said of two captions of an image.

    Attributes:
        image_id: the image.
        first: a caption.
        second: another.
        winner: 1 the first, -1 the second, 0 a tie.
    """

    image_id: str
    first: str
    second: str
    winner: int


@dataclass
class Preferences:
    """What a file says, each as often as it stands there.

    Attributes:
        preferences: in the file's order.
        images: {image_id: an image, undecoded}, where the file has them.
    """

    preferences: list[Preference]
    images: dict[str, Any] = field(default_factory=dict)


def read_preferences(path: str | os.PathLike[str]) -> Preferences:
    """Read a file of pairs, a table of battles or an arena's votes.

    Raises:
        AnnotationError: a row is no pair.
        SourceError: it holds judgements of another kind, or none.
    """
    path = Path(path)
    rows = [] if is_database(path) else read_rows(path) if path.suffix.lower() in _TABLES else []
    if rows and {"chosen", "rejected"} <= rows[0].keys():
        told = [Preference(*pair, 1) for pair in _pairs(path, rows)]
        images: dict[str, Any] = {}
        for number, row in enumerate(rows, start=1):
            if (own := row.get("images")) and images.setdefault(nfc(row["image_id"]), own[0]) != own[0]:
                raise AnnotationError(
                    f"{path}, row {number} has another image under the id {row.get('image_id')!r} than a row before it"
                )
        return Preferences(told, images)
    found = read_judgements(path)
    if not found.battles:
        raise AnnotationError(
            f"{path} says which captions are good, not which of two is better; it needs image_id, chosen and rejected "
            "(captune pairs makes them of a table of scores), or image_id, caption_a, caption_b and winner"
        )
    for reason, count in found.left_out.items():
        skip(reason, str(path), count)
    told = []
    for battle in found.battles:
        first, second = found.candidates[battle.first], found.candidates[battle.second]
        told.append(Preference(first.image_id, first.caption, second.caption, battle.winner))
    return Preferences(told)


def read_pairs(path: str | os.PathLike[str]) -> list[Pair]:
    """Read a file of pairs: image_id, chosen and rejected, each a text or a list with one message.

    Raises:
        AnnotationError: a row without them.
    """
    return _pairs(path, read_rows(path))


def _pairs(path: str | os.PathLike[str], rows: list[dict[str, Any]]) -> list[Pair]:
    pairs = []
    for number, row in enumerate(rows, start=1):
        texts = [_text(row.get(name)) for name in ("chosen", "rejected")]
        if not isinstance(row.get("image_id"), str) or None in texts:
            raise AnnotationError(f"{path}, row {number} is no pair: it needs image_id, chosen and rejected")
        pairs.append(Pair(nfc(row["image_id"]), *(text or "" for text in texts)))
    return pairs


def _text(value: Any) -> str | None:
    """The text of an answer, in a conversation or by itself; in a table it may be JSON."""
    if isinstance(value, str) and value.startswith("[{"):
        try:
            value = json.loads(value)
        except ValueError:
            return value
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], dict):
        value = value[0].get("content")
        if isinstance(value, list):  # of parts
            value = "".join(part.get("text") or "" for part in value if isinstance(part, dict))
    return value if isinstance(value, str) else None
