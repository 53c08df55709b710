"""Captions that lie in a folder of images: NAME.txt beside NAME.jpg, or a metadata table; and tables of captions."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from captune.data.readers import ID_KEYS, IMAGE_KEYS, REFERENCE_KEYS, first_key, is_image_name, refuse_swallowed
from captune.errors import CaptionFileError
from captune.utils.files import jsonl_rows, read_file
from captune.utils.skipped import Told, skip
from captune.utils.tables import header_of, refuse_repeated, rows_of

CaptionEntry = tuple[str, int, Any, Any]  # a noun and a number for messages, image_id, caption

SIDECARS = (".txt", ".caption")  # in the order in which a folder is looked through
METADATA = ("metadata.jsonl", "metadata.csv")
LINE_BREAKS = Told("line breaks within captions became spaces, as a caption is one line there")


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
    header = header_of(text, delimiter=delimiter)
    image, caption = first_key(header, (*ID_KEYS, *IMAGE_KEYS)), first_key(header, REFERENCE_KEYS)
    if image is None or caption is None:
        raise CaptionFileError(
            f"{path}: the first line must name a column of ids and one of captions, such as image_id,caption; it "
            f"is {', '.join(header) or 'empty'}"
        )
    refuse_repeated(path, header, (image, caption), CaptionFileError)
    places = header.index(image), header.index(caption)
    # a space behind the delimiter of the header stands in each row, and is no part of what is quoted behind it
    spaced = re.search(rf"{delimiter} +\S", text.partition("\n")[0]) is not None
    for number, lines, row in rows_of(path, text, CaptionFileError, delimiter=delimiter, skipinitialspace=spaced):
        if is_image_name(row[places[0]]):  # a line of a caption may well begin with another id
            refuse_swallowed(path, number, lines, row, places[0], delimiter, CaptionFileError)
        yield "line", number, row[places[0]], row[places[1]]


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
