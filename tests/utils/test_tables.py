"""CSV tables: rows as wide as the header, with the lines that they stand in."""

from __future__ import annotations

import csv
import io
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from captune.errors import CaptionFileError
from captune.utils.files import write_csv
from captune.utils.tables import header_of, refuse_repeated, rows_of

CELLS = st.text(st.characters(codec="utf-8", exclude_characters="\r\0"), max_size=8)


@settings(derandomize=True, max_examples=60, deadline=None)
@given(st.lists(st.lists(CELLS, min_size=2, max_size=2).filter(lambda row: any(map(str.strip, row))), max_size=6))
def test_rows_are_read_as_they_were_written_and_know_their_lines(rows: list[list[str]]) -> None:
    file = io.StringIO(newline="")
    write_csv(file, [["id", "text"], *rows])
    text = file.getvalue()
    found = list(rows_of("x.csv", text, CaptionFileError))
    assert [row for _, _, row in found] == rows
    lines = text.split("\n")
    for start, number, row in found:
        assert list(csv.reader(io.StringIO("\n".join(lines[start - 1 : start - 1 + number]), newline=""))) == [row]


def test_blank_rows_are_passed_over() -> None:
    assert list(rows_of("x.csv", "id,text\n\n1,a\n , \n2,b\n", CaptionFileError)) == [
        (3, 1, ["1", "a"]),
        (5, 1, ["2", "b"]),
    ]


def test_a_row_of_another_width_is_mended_or_refused() -> None:
    text = "id|n|text\n1|0|a\n2|0 b\n"
    options: dict[str, Any] = {"delimiter": "|", "quoting": csv.QUOTE_NONE}
    mended = rows_of("x.csv", text, CaptionFileError, mend=lambda row: [row[0], *row[1].split(" ")], **options)
    assert [row for *_, row in mended] == [["1", "0", "a"], ["2", "0", "b"]]
    with pytest.raises(CaptionFileError, match="x.csv, line 3: expected 3 cells, as in the header, found 2"):
        list(rows_of("x.csv", text, CaptionFileError, **options))
    with pytest.raises(CaptionFileError, match="found 4.*take it out of the text"):
        list(rows_of("x.csv", "id|n|text\n1|0|a|b\n", CaptionFileError, **options))


def test_a_quotation_mark_that_nothing_closes_names_the_lines() -> None:
    with pytest.raises(CaptionFileError, match="x.csv, line 2 to 3: .*; a cell that begins with a quotation mark"):
        list(rows_of("x.csv", 'id,text\n1,"a\n2,b\n', CaptionFileError))


def test_a_header_is_read_with_the_separator_that_it_has() -> None:
    assert header_of(' Image,"Caption"\r\na,b', delimiter=",") == ["image", "caption"]
    assert header_of('a,"b\nc"\n1,2') == ["a", "b\nc"]
    assert [row for *_, row in rows_of("x.csv", "a,b\r1,2\r3,4\r", CaptionFileError)] == [["1", "2"], ["3", "4"]]
    with pytest.raises(CaptionFileError, match="the column 'c' stands twice"):
        refuse_repeated("x.csv", ["", "", "c", "c"], ["", "", "c", "c"], CaptionFileError)
    assert header_of("CLIP:a,b", lower=False) == ["CLIP:a", "b"] and header_of('"a" b,c') == [] == header_of("")
    with pytest.raises(CaptionFileError, match="the column 'b' stands twice"):
        refuse_repeated("x.csv", ["a", "b", "b"], ["a", "b"], CaptionFileError)
    refuse_repeated("x.csv", ["a", "b", "b"], ["a"], CaptionFileError)  # what is not read may
