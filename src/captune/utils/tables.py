"""CSV tables from outside: a header, and rows that are as wide as it."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from captune.errors import CaptuneError

QUOTES = (
    "a cell that begins with a quotation mark ends with one, and those inside are doubled: "
    'a cell with a quotation mark is written "a ""stop"" sign"'
)


def header_of(text: str, *, lower: bool = True, **options: Any) -> list[str]:
    """Return the names of the first row, stripped; none where it is no CSV.

    Args:
        text: of the table, or its first line.
        lower: in lower case.
        options: of `csv.reader`.
    """
    try:
        names = [cell.strip() for cell in next(_reader(text, options), [])]
    except csv.Error:
        return []
    return [name.lower() for name in names] if lower else names


def _reader(text: str, options: Mapping[str, Any]) -> Any:
    """A reader for which only line feeds end a row, whatever else a caption holds; without any, returns do."""
    if "\n" not in text:
        text = text.replace("\r", "\n")
    return csv.reader(io.StringIO(text, newline="\n"), strict=True, **options)


def refuse_repeated(path: Any, header: Sequence[str], names: Iterable[str], error: type[CaptuneError]) -> None:
    """Refuse a column that is read and that stands twice in the header."""
    if twice := next((name for name in names if name and header.count(name) > 1), None):
        raise error(f"{path}, line 1: the column {twice!r} stands twice; keep one")


def rows_of(
    path: Any,
    text: str,
    error: type[CaptuneError],
    *,
    mend: Callable[[list[str]], list[str]] | None = None,
    **options: Any,
) -> Iterator[tuple[int, int, list[str]]]:
    """Yield (first line, lines, cells) of each row below the header that is not blank.

    Args:
        path: of the table, for errors.
        text: of the table.
        error: what is raised for a row that has more or fewer cells than the header, and for what is no CSV.
        mend: makes another row of one that has more or fewer cells.
        options: of `csv.reader`.
    """
    rows = _reader(text, options)
    start = 1  # of the row that comes
    width = None
    try:
        for row in rows:
            number, start = start, rows.line_num + 1
            if width is None:
                width = len(row)
                continue
            if not any(cell.strip() for cell in row):
                continue
            if len(row) != width and mend is not None:
                row = mend(row)
            if len(row) != width:
                raise error(_wrong_width(path, number, row, width, options.get("quoting") != csv.QUOTE_NONE))
            yield number, start - number, row
    except csv.Error as problem:
        end = f" to {rows.line_num}" if rows.line_num > start else ""
        raise error(f"{path}, line {start}{end}: {problem}; {QUOTES}") from problem


def _wrong_width(path: Any, number: int, row: list[str], width: int, quoted: bool) -> str:
    advice = ""
    if len(row) > width:
        advice = "; put text that holds the separator in quotation marks" if quoted else "; take it out of the text"
    shown = str(row) if len(str(row)) < 200 else str(row)[:200] + " ..."
    return f"{path}, line {number}: expected {width} cells, as in the header, found {len(row)}: {shown}{advice}"
