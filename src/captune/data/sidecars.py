"""Captions that lie in a folder of images: NAME.txt beside NAME.jpg, or a metadata table; and tables of captions."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from captune.data.readers import ID_KEYS, IMAGE_KEYS, REFERENCE_KEYS, first_key
from captune.errors import CaptionFileError
from captune.utils.files import jsonl_rows, read_file
from captune.utils.skipped import Told, skip

CaptionEntry = tuple[str, int, Any, Any]  # a noun and a number for messages, image_id, caption

SIDECARS = (".txt", ".caption")  # in the order in which a folder is looked through
METADATA = ("metadata.jsonl", "metadata.csv")
LINE_BREAKS = Told("line breaks within captions became spaces, as a sidecar holds one line")


def read_table(path: Path) -> Iterator[CaptionEntry]:
    """Yield the rows of a table whose header names a column of ids or files and one of captions.

    Raises:
        CaptionFileError: where it is not read whole.
    """
    try:
        text = read_file(path, error=CaptionFileError).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CaptionFileError(f"{path} is not UTF-8 text: {error}") from error
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        header = [cell.strip().lower() for cell in next(rows, [])]
        image, caption = first_key(header, (*ID_KEYS, *IMAGE_KEYS)), first_key(header, REFERENCE_KEYS)
        if image is None or caption is None:
            raise CaptionFileError(
                f"{path}: the first line must name a column of ids and one of captions, such as image_id,caption; it "
                f"is {', '.join(header) or 'empty'}"
            )
        places = header.index(image), header.index(caption)
        for row in rows:
            if len(row) != len(header):
                if not any(row):
                    continue
                raise CaptionFileError(
                    f"{path}, line {rows.line_num}: {len(row)} cells where the header has {len(header)}; a caption "
                    "that holds the separator stands in quotation marks"
                )
            yield "line", rows.line_num, row[places[0]], row[places[1]]
    except csv.Error as error:
        raise CaptionFileError(f"{path}, line {rows.line_num}: {error}") from error


def read_metadata(path: Path) -> Iterator[CaptionEntry]:
    """Yield (noun, number, file name, caption) of a metadata file."""
    if path.suffix.lower() == ".csv":
        yield from read_table(path)
        return
    for number, row in jsonl_rows(path):
        image, caption = first_key(row, (*IMAGE_KEYS, *ID_KEYS)), first_key(row, REFERENCE_KEYS)
        yield "line", number, row.get(image or ""), row.get(caption or "")


def read_sidecar(path: Path, *, exact: bool = False) -> list[str]:
    """Return the captions in a sidecar, one per line that is not blank.

    Args:
        path: the file.
        exact: with the spaces around them; a file without any is one blank caption.

    Raises:
        CaptionFileError: where it cannot be read as UTF-8 text.
    """
    try:
        text = read_file(path, error=CaptionFileError).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CaptionFileError(f"{path} is not UTF-8 text: {error}") from error
    lines = [line for line in text.split("\n") if line.strip()]
    if exact:
        return [line.removesuffix("\r") for line in lines] or [text.split("\n")[0]]
    return [line.strip() for line in lines]


def as_file(caption: str) -> bytes:
    """Return a caption as the text of a file, from which `read_sidecar` and shards give it back exactly.

    Raises:
        UnicodeEncodeError: for half a character.
    """
    bom = "\ufeff" if caption.startswith("\ufeff") else ""  # reading takes one for a mark of the encoding
    return f"{bom}{caption}\n".encode()


def sidecar_line(image_id: str, caption: str) -> str:
    """Return a caption as it stands in a sidecar: on one line; what that changes is counted and said."""
    line = " ".join(caption.split("\n")) if "\n" in caption else caption
    line = line.replace("\r", " ")
    if line != caption:
        skip(LINE_BREAKS, image_id)
    return line
