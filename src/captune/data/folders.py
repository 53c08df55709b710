"""Folders of images: their files, found by name alone, and the references that lie beside them."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from captune.data.images import IMAGE_SUFFIXES
from captune.data.readers import Blanks, as_name, as_references
from captune.data.sidecars import METADATA, SIDECARS, read_metadata, read_sidecar
from captune.errors import CaptionFileError, SourceError
from captune.utils.skipped import skip

if TYPE_CHECKING:
    import pyarrow as pa

COMPANIONS = (".settings.json", ".images.jsonl", ".bad.jsonl", ".edits.jsonl")
_AT_ONCE = 2**12  # names that are strings together
MADE_OF_JOURNALS = (".csv", ".tsv", ".json", ".parquet", ".tar")


def list_images(folder: Path) -> list[str]:
    """Return the image files below a folder, sorted, as relative paths with "/"; links are followed.

    What cannot be read below it, such as a subfolder without permission or a link to itself, is left out and counted,
    and so are files of other kinds, where there are images. Hidden files are left out.

    By name alone: nothing is opened, and 100,000 files take about a second. A name that is not valid UTF-8 is listed
    with its bytes escaped; opening it says so.
    """
    names: list[str] = listed(folder)[0].to_pylist()
    return names


def listed(folder: Path) -> tuple[pa.StringArray, dict[str, list[str]]]:
    """The images of a folder, and the files that hold their captions, by suffix and as absolute paths."""
    found, others = files_below(folder, IMAGE_SUFFIXES)
    beside = {suffix: others.pop(suffix) for suffix in (*SIDECARS, ".jsonl", ".csv") if len(found) and suffix in others}
    one_each = any(suffix in beside for suffix in SIDECARS)
    stems = {os.path.splitext(os.path.join(folder, name))[0] for name in found.to_pylist()} if one_each else set()
    for suffix, paths in beside.items():
        own = [path for path in paths if _is_beside(path, stems)]
        if rest := sorted(set(paths) - set(own)):
            others[suffix] = rest
        beside[suffix] = own
    for suffix, every in sorted(others.items()) if len(found) else ():
        if paths := [path for path in every if not _is_own(path)]:
            skip(f"{suffix or 'suffixless'} files, which are not read as images", min(paths), len(paths))
    return found, beside


def _is_own(path: str) -> bool:
    """Whether captune wrote it beside a caption file: caps.csv.settings.json, or the journal caps.csv.jsonl."""
    stem, suffix = os.path.splitext(path)
    return path.endswith(COMPANIONS) or (suffix == ".jsonl" and stem.endswith((".jsonl", *MADE_OF_JOURNALS)))


def _is_beside(path: str, stems: Collection[str]) -> bool:
    stem, suffix = os.path.splitext(path)
    return os.path.basename(path) in METADATA if suffix.lower() not in SIDECARS else stem in stems


def references_beside(folder: Path, names: pa.StringArray, beside: dict[str, list[str]]) -> dict[str, list[str]]:
    """The references that lie beside images, by the images' names: sidecars, and metadata as ImageFolder reads it.

    Images without any are not in it.

    Raises:
        SourceError: a file that cannot be read whole.
    """
    found: dict[str, list[str]] = {}
    try:
        sidecars = {os.path.splitext(path)[0]: path for suffix in SIDECARS[::-1] for path in beside.get(suffix, ())}
        first, second = ({os.path.splitext(path)[0] for path in beside.get(suffix, ())} for suffix in SIDECARS)
        both = first & second
        owners: dict[str, str] = {}
        blanks = Blanks()
        for name in names.to_pylist() if sidecars else ():
            stem = os.path.splitext(os.path.join(folder, name))[0]
            if path := sidecars.get(stem):
                if (other := owners.setdefault(stem, name)) != name:
                    raise SourceError(f"{path} may be the caption of {other} or of {name}: rename one of the images")
                if stem in both:
                    skip("sidecars NAME.caption, since NAME.txt is read where there is one", path)
                found[name] = read_sidecar(Path(path))
                if blanks.remove(found[name]):
                    blanks.note(path)
        blanks.say()
        tables = [file for suffix in (".jsonl", ".csv") for file in beside.get(suffix, ())]
        known = {os.path.join(folder, name): name for name in names.to_pylist()} if tables else {}
        for path in tables:
            blanks = Blanks()
            for noun, number, written, value in read_metadata(Path(path)):
                place = f"{path}, {noun} {number}"
                name = known.get(os.path.join(os.path.dirname(path), as_name(written, "file_name", place)))
                if name is None:
                    skip("rows of metadata whose image is not in the folder", f"{place}: {written}")
                    continue
                references = as_references(value)
                if blanks.remove(references):
                    blanks.note(place)
                found.setdefault(name, []).extend(references)
            blanks.say()
    except CaptionFileError as error:
        raise SourceError(str(error)) from error
    return found


def files_below(folder: Path, suffixes: Collection[str]) -> tuple[pa.StringArray, dict[str, list[str]]]:
    """The files below a folder with one of the suffixes, relative to it, and the paths of the others by suffix.

    The first are sorted, in a column, which takes a fifth of the memory of strings: there may be millions.
    """
    import pyarrow as pa

    found: list[pa.Array] = []
    some: list[str] = []  # of them, not in a column yet
    others: dict[str, list[str]] = {}
    pending, seen = [("", os.fspath(folder))], {os.path.realpath(folder)}
    while pending:
        prefix, current = pending.pop()
        columns: list[pa.Array] = []
        names: list[str] = []
        folders: list[str] = []
        rest: list[tuple[str, str]] = []
        lost: list[str] = []
        try:
            with os.scandir(current) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    try:
                        is_folder = entry.is_dir()
                    except OSError as error:  # a link that leads to itself
                        lost.append(f"{entry.path}: {error.strerror}")
                        continue
                    suffix = os.path.splitext(entry.name)[1].lower()
                    if is_folder:
                        folders.append(entry.name)
                    elif suffix in suffixes:
                        names.append(_utf8(prefix + entry.name))
                        if len(names) == _AT_ONCE:
                            columns.append(pa.array(names, pa.string()))
                            names.clear()
                    else:
                        rest.append((suffix, _utf8(entry.path)))
        except OSError as error:
            if not prefix:
                raise SourceError(f"{current} cannot be read: {error.strerror}") from error
            skip("folders that cannot be read", f"{current}: {error.strerror}")
            continue
        found += columns
        some += names
        if len(some) >= _AT_ONCE:
            found.append(pa.array(some, pa.string()))
            some.clear()
        for suffix, path in rest:
            others.setdefault(suffix, []).append(path)
        for link in lost:
            skip("links that lead nowhere", link)
        for name in folders:
            path = os.path.join(current, name)
            real = os.path.realpath(path)
            if real not in seen:  # a link may lead back up
                seen.add(real)
                pending.append((f"{prefix}{name}/", path))
    column = pa.concat_arrays([*found, pa.array(some, pa.string())])
    found.clear()
    names = column.sort()
    del column
    pa.default_memory_pool().release_unused()  # which Arrow would keep for later
    return names, others


def _utf8(path: str) -> str:
    return path if path.isascii() else path.encode("utf-8", "backslashreplace").decode("utf-8")
