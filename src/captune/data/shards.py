"""The parquet or tar files, shards, that a path, a folder or a pattern such as ``{000..120}.tar`` names."""

from __future__ import annotations

import glob
import os
import re
from pathlib import Path

from captune.data.folders import files_below
from captune.data.images import IMAGE_SUFFIXES
from captune.errors import SourceError
from captune.utils.skipped import skip

SHARD_SUFFIXES = (".tar", ".parquet")
MOST_SHARDS = 1_000_000
_MARKS = re.compile(r"[*?[{]")
_BRACES = re.compile(r"\{([^{}]*(?:,|\.\.)[^{}]*)\}")


def is_pattern(where: str) -> bool:
    """Return whether a name has marks of a pattern."""
    return _MARKS.search(where) is not None


def is_saved(folder: Path) -> bool:
    """Return whether a folder was written by `Dataset.save_to_disk`."""
    return any((folder / name).is_file() for name in ("dataset_info.json", "dataset_dict.json"))


def base_of(where: str) -> Path:
    """Return the folder that relative image paths in tables lead from.

    That is the source itself, where it is a folder; the folder before the first mark of a pattern; or that of the file.
    """
    path = Path(where).expanduser()
    if path.is_dir():
        return path
    mark = None if path.exists() else _MARKS.search(where)
    return Path(where[: mark.start()] + "x" if mark else where).expanduser().parent


_SPLIT_FILE = re.compile(r"(train|training|validation|valid|val|dev|test|testing)-\d{5}-of-\d{5}\.")


def shards_of(where: str) -> list[str]:
    """Parquet or tar files that a path, a folder or a pattern names; all of one kind.

    A folder with images, or with a dataset that `datasets` saved, is read as that, and has none.

    Raises:
        SourceError: a pattern in braces, such as ``{000..120}.tar``, names a file that is not there, or a folder holds
            several splits.
    """
    path = Path(where).expanduser()
    if path.is_dir():
        names, rest = files_below(path, SHARD_SUFFIXES)
        if not IMAGE_SUFFIXES.isdisjoint(rest) or is_saved(path):
            return []
        below = sorted(path / name for name in names.to_pylist())
        _refuse_splits(path, below)
    elif path.is_file() or not _BRACES.search(str(path)):
        if path.suffix.lower() not in SHARD_SUFFIXES:
            return []
        below = [path] if path.is_file() else [Path(file) for file in sorted(glob.glob(str(path)))]
    else:
        below = []
        for name in _expanded(str(path)):
            found = [name] if os.path.isfile(name) else sorted(glob.glob(name))
            if not found:
                raise SourceError(f"{where}: there is no {name}")
            below += [Path(file) for file in found]
    for kind in SHARD_SUFFIXES:
        if files := list(dict.fromkeys(str(file) for file in below if file.suffix.lower() == kind)):
            if others := sorted(str(file) for file in below if file.suffix.lower() != kind):
                skip(f"parquet files beside {kind} files", others[0], len(others))
            return files
    return []


def _refuse_splits(folder: Path, files: list[Path]) -> None:
    """Refuse a folder with the files of several splits, as hubs name them: one of them is meant."""
    found = [(file, named[1]) for file in files if (named := _SPLIT_FILE.match(file.name))]
    if len(splits := dict.fromkeys(split for _, split in found)) > 1:
        patterns = [str(next(file for file, own in found if own == split).parent / f"{split}-*") for split in splits]
        raise SourceError(f"{folder} holds several splits, name the files of one: {' or '.join(patterns)}")


def _expanded(pattern: str) -> list[str]:
    """The names that a pattern with ``{0..5}``, ``{000..120}`` or ``{a,b}`` stands for, in a shell's order."""
    found = _BRACES.search(pattern)
    if found is None:
        return [pattern]
    first, _, last = found[1].partition("..")
    if "," in found[1]:
        parts = found[1].split(",")
    elif not (re.fullmatch(r"[0-9]{1,9}", first) and re.fullmatch(r"[0-9]{1,9}", last)) or int(first) > int(last):
        raise SourceError(f"{pattern}: {found[0]} is no range of numbers, such as {{000..120}}")
    elif int(last) - int(first) >= MOST_SHARDS:
        raise SourceError(f"{pattern}: {found[0]} names more than {MOST_SHARDS:,} files")
    else:
        padded = any(text.startswith("0") and len(text) > 1 for text in (first, last))
        wide = max(len(first), len(last)) if padded else 0
        parts = [f"{number:0{wide}d}" for number in range(int(first), int(last) + 1)]
    rest = _expanded(pattern[found.end() :])
    return [f"{pattern[: found.start()]}{part}{end}" for part in parts for end in rest]
