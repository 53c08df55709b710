"""Files of what is known about each image: one JSON object by image id, or such objects line by line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from captune.errors import ScorerError
from captune.utils.files import decode_row, parse_json, read_file


def read_by_image(file: Path) -> Any:
    """Read one JSON value, or the objects of all lines as one.

    Of lines that have an `image_id` instead, such as detections, the first is returned: the caller says what it wants.

    Raises:
        ScorerError: it is neither, or an image stands twice.
    """
    try:
        text = read_file(file, error=ScorerError).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ScorerError(f"{file} is not UTF-8 text: {error}") from error
    lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    found: dict[str, Any] = {}
    for number, line in lines:
        try:
            row = decode_row(line)
        except (ValueError, RecursionError) as error:
            if not found:  # the first line is no object: one value over several
                return parse_json(text, str(file), error=ScorerError)
            why = "nested too deeply to be read" if isinstance(error, RecursionError) else error
            raise ScorerError(f"{file}, line {number}: {why}") from error
        if "image_id" in row:
            return row
        if twice := found.keys() & row.keys():
            raise ScorerError(f"{file}, line {number}: a second entry of image {min(twice)!r}; keep one")
        found |= row
    return found
