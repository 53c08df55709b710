"""Files that a killed process cannot leave half written: JSON lines, and replacement in one step.

Only a line feed ends a line: a caption may hold U+2028 or a vertical tab, where `str.splitlines` would cut it in two.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from captune.errors import CaptionFileError

try:
    import fcntl
except ImportError:  # Windows has no advisory locks: `lock` always succeeds there
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)


@contextmanager
def replacing(path: str | os.PathLike[str], *, name: str | None = None) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on leaving, what was written there replaces `path` in one step.

    A reader, or a crash, sees the old file or the new one and nothing between. After an error `path` is unchanged.

    Args:
        path: the file to write.
        name: the temporary file's name; None: one with the process's number. A fixed name is for work under a lock: a
            killed process leaves one file, which the next one overwrites.
    """
    path = Path(path)
    temporary = path.with_name(name or f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def replace_file(path: str | os.PathLike[str], text: str) -> None:
    """Write a UTF-8 text file in one step; see `replacing`."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def lock(file: IO[Any]) -> bool:
    """Lock an open file against other processes until it is closed.

    Returns:
        False where another process holds it.
    """
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def jsonl_line(row: Mapping[str, Any]) -> str:
    """Return a row as a line of JSON with its line end; a lone surrogate is escaped, since UTF-8 cannot hold it."""
    line = json.dumps(row, ensure_ascii=False, allow_nan=False)
    try:
        line.encode("utf-8")
    except UnicodeEncodeError:
        line = json.dumps(row, allow_nan=False)
    return line + "\n"


def read_jsonl(path: str | os.PathLike[str], *, problems: list[str] | None = None) -> list[dict[str, Any]]:
    """Read a file of JSON objects, one per line, in file order.

    A torn last line (no line end, no valid JSON) is left out and logged.

    Args:
        path: the file.
        problems: given a list, every invalid line is left out and a sentence about it is appended here.

    Raises:
        CaptionFileError: for an invalid line, if no `problems` are given.
    """
    path = Path(path)
    lines = path.read_bytes().split(b"\n")
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line if problems is None else line.decode("utf-8", "replace"))
            if not isinstance(row, dict):
                raise ValueError(f"expected a JSON object, found {type(row).__name__}")
        except ValueError as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
            if problems is not None:
                why = f"JSON ({error.msg})" if isinstance(error, json.JSONDecodeError) else "a JSON object"
                problems.append(f"{path.name} line {number} is not {why}; it was left out.")
                continue
            if number == len(lines):
                logger.warning("%s: the last line (%d) is cut off and left out", path, number)
                break
            raise CaptionFileError(f"{path}, line {number}: {error}") from error
        rows.append(row)
    return rows


def cut_torn_line(path: Path) -> None:
    """Remove a last line without its line end, which a killed process may have left; logged."""
    with path.open("rb+") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return
        file.seek(-1, os.SEEK_END)
        if file.read(1) == b"\n":
            return
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
    logger.warning("%s: the last line was cut off and is removed", path)
