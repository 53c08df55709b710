"""Files of JSON lines with an ``image_id`` each, read piece by piece: millions of captions in little memory.

A piece is read by Arrow; where it is odd in any way (an id that is a number, half a character, a line that is no
object) its lines are read one by one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.json as arrow_json

from captune.data.readers import nfc
from captune.errors import CaptionFileError
from captune.utils.files import decode_row, replacing
from captune.utils.ids import Ids, digests, numbers

PIECE = 2**18  # bytes; the rows of one take some thirty times that in memory


class Kind(NamedTuple):
    """What the lines of a file hold of their images.

    Attributes:
        column: under which key.
        type: of the value there, in Python.
        arrow: the same in Arrow.
        noun: what the value is called in messages.
        nouns: several of them.
        done: what happened to an image that has one.
    """

    column: str
    type: type
    arrow: pa.DataType
    noun: str
    nouns: str
    done: str


CAPTIONS = Kind("caption", str, pa.string(), "caption", "captions", "captioned")
_OBJECT = pa.struct({"label": pa.string(), "score": pa.float64(), "box": pa.list_(pa.float64())})
OBJECTS = Kind("objects", list, pa.list_(_OBJECT), "list of objects", "lists of objects", "searched for objects")


class Lines(NamedTuple):
    """Whole lines of a file.

    Attributes:
        ids: of the images, in Unicode's composed form.
        starts: where each line begins in the file, int64.
        ends: one past each line's last byte, int64.
        columns: what was read besides, by name; None where a line does not have it.
    """

    ids: list[str]
    starts: np.ndarray
    ends: np.ndarray
    columns: dict[str, list[Any]]


def read_caption_lines(path: Path, kind: Kind = CAPTIONS) -> Iterator[Lines]:
    """Yield the lines of a caption file, about `PIECE` bytes at a time; a torn last line is left out.

    Args:
        path: the file.
        kind: what each line must hold.

    Raises:
        CaptionFileError: for a line that is no object with an id and a caption; names it.
    """
    return _read(path, pa.schema({"image_id": pa.string(), kind.column: kind.arrow}), kind)


def read_lines(path: Path, columns: dict[str, pa.DataType]) -> Iterator[Lines]:
    """Yield the lines of a companion of a caption file; those that are no object with an id are left out.

    Args:
        path: the file.
        columns: what is read of each line besides its id.
    """
    return _read(path, pa.schema({"image_id": pa.string(), **columns}), None)


def _read(path: Path, schema: pa.Schema, strict: Kind | None) -> Iterator[Lines]:
    number, start = 1, 0
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            piece += file.readline()
            lines = _quick(piece, start, schema, strict)
            yield lines if lines is not None else _one_by_one(path, piece, start, number, schema, strict)
            start += len(piece)
            number += piece.count(b"\n")


def _quick(piece: bytes, start: int, schema: pa.Schema, strict: Kind | None) -> Lines | None:
    array = np.frombuffer(piece, dtype=np.uint8)
    ends = np.flatnonzero(array == ord("\n")) + 1
    if not len(ends) or ends[-1] != len(piece):
        return None
    starts = np.append(0, ends[:-1])
    if (array[starts] != ord("{")).any():
        return None
    try:
        table = arrow_json.read_json(
            pa.BufferReader(piece),
            read_options=arrow_json.ReadOptions(use_threads=False, block_size=len(piece) + 1),
            parse_options=arrow_json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore"),
        )
        columns = table.to_pydict()
    except (pa.ArrowException, UnicodeDecodeError):
        return None
    ids = columns.pop("image_id")
    if len(ids) != len(ends) or not all(ids) or (strict and any(table[name].null_count for name in schema.names)):
        return None
    return Lines([nfc(one) for one in ids], starts + start, ends + start, columns)


def _one_by_one(path: Path, piece: bytes, start: int, number: int, schema: pa.Schema, strict: Kind | None) -> Lines:
    rows: list[dict[str, Any]] = []
    places: list[tuple[int, int]] = []
    lines = piece.split(b"\n")
    for line in lines:
        end = start + len(line) + 1
        try:
            if line.strip():
                row = decode_row(line.removeprefix(b"\xef\xbb\xbf") if start == 0 else line)
                image_id = row.get("image_id")
                if image_id in (None, "") or isinstance(image_id, bool | list | dict):
                    raise ValueError("needs an image_id (a string or a number)")
                if strict and not isinstance(row.get(strict.column), strict.type):
                    kind = "a string" if strict.type is str else f"under {strict.column!r}"
                    raise ValueError(f"image {image_id!r} needs one {strict.noun}, {kind}")
                rows.append(row)
                places.append((start, end))
        except (ValueError, RecursionError) as error:
            if strict and not (line is lines[-1] and line.startswith((b"{", b"\0"))):  # not a torn last line
                why = "nested too deeply to be read" if isinstance(error, RecursionError) else str(error)
                raise CaptionFileError(f"{path}, line {number}: {why}") from error
        start, number = end, number + 1
    array = np.array(places, dtype=np.int64).reshape(-1, 2)
    columns = {name: [row.get(name) for row in rows] for name in schema.names[1:]}
    return Lines([nfc(str(row["image_id"])) for row in rows], array[:, 0], array[:, 1], columns)


def reorder(path: Path, places: Ids, *, keep: Ids | None = None) -> None:
    """Rewrite a file of JSON lines in the order of its images' places, in one step; of two lines of one id the last.

    Args:
        path: the file.
        places: of ids, see `captune.utils.ids.as_values`; lines of ids without one are left out.
        keep: lines of other ids are left out.
    """
    found = [(np.empty(0, np.int64),) * 3]
    for lines in read_lines(path, {}):
        keys = digests(lines.ids)
        wanted, values = places.find(keys)
        if keep is not None:
            wanted &= keep.known(keys)
        found.append((numbers(values[wanted]), lines.starts[wanted], lines.ends[wanted]))
    place, starts, ends = (np.concatenate(part) for part in zip(*found, strict=True))
    del found
    order = np.argsort(place, kind="stable")
    order = order[np.append(place[order[1:]] != place[order[:-1]], np.ones(min(1, len(order)), dtype=bool))]
    copy_lines(path, starts[order], ends[order])


def copy_lines(path: Path, starts: np.ndarray, ends: np.ndarray) -> None:
    """Make a file of some of its lines, in this order, in one step; one that is so already is left alone."""
    new = np.append([True] * (len(starts) > 0), starts[1:] != ends[:-1])  # not the line that comes next in the file
    first = np.flatnonzero(new)
    starts, ends = starts[first], ends[np.append(first[1:], len(ends))[: len(first)] - 1]
    size = path.stat().st_size
    if (len(starts) == 1 and (starts[0], ends[0]) == (0, size)) or len(starts) == size == 0:
        return
    with replacing(path) as temporary, path.open("rb") as source, temporary.open("wb") as target:
        for at in range(0, len(starts), 2**14):
            for start, end in zip(starts[at : at + 2**14].tolist(), ends[at : at + 2**14].tolist(), strict=True):
                source.seek(start)
                while part := source.read(min(end - start, PIECE)):
                    target.write(part)
                    start += len(part)


class CaptionsOfFile(Mapping[str, str]):
    """The captions of a file of JSON lines whose ids stand once each, read when they are gone through.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def _pairs(self) -> Iterator[tuple[str, str]]:
        for lines in read_caption_lines(self.path):
            yield from zip(lines.ids, lines.columns["caption"], strict=True)

    def items(self) -> Any:
        """Yield each id with its caption, in file order."""
        return self._pairs()

    def __iter__(self) -> Iterator[str]:
        return (image_id for image_id, _ in self._pairs())

    def __len__(self) -> int:
        return sum(len(lines.ids) for lines in read_caption_lines(self.path))

    def __getitem__(self, image_id: str) -> str:
        for one, caption in self._pairs():
            if one == image_id:
                return caption
        raise KeyError(image_id)
