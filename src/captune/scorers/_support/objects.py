"""Files of what is known about each image: one JSON object by image id, or such objects line by line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_by_image(file: Path) -> Any:
    """Read one JSON object, or the objects of all lines as one.

    Raises:
        ValueError: it is neither.
    """
    text = file.read_text(encoding="utf-8")
    try:
        try:
            return json.loads(text)
        except json.JSONDecodeError:
            rows = [json.loads(line) for line in text.split("\n") if line.strip()]
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    wrong = next((row for row in rows if not isinstance(row, dict)), None)
    if wrong is not None:
        raise ValueError(f"a line is no object but {type(wrong).__name__}")
    return {key: value for row in rows for key, value in row.items()}
