"""Folders of images: their files, found by name alone, and the references that lie beside them."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from captune.data.images import IMAGE_SUFFIXES
from captune.data.readers import Blanks, Entry, as_name, as_references
from captune.data.sidecars import METADATA, SIDECARS, read_metadata, read_sidecar
from captune.errors import CaptionFileError, SourceError
from captune.utils.skipped import skip

COMPANIONS = (".settings.json", ".images.jsonl", ".bad.jsonl", ".edits.jsonl")
MADE_OF_JOURNALS = (".csv", ".tsv", ".json", ".parquet", ".tar")


def list_images(folder: Path) -> list[str]:
    """Return the image files below a folder, sorted, as relative paths with "/"; links are followed.

    What cannot be read below it, such as a subfolder without permission or a link to itself, is left out and counted,
    and so are files of other kinds, where there are images. Hidden files are left out.

    By name alone: nothing is opened, and 100,000 files take about a second. A name that is not valid UTF-8 is listed
    with its bytes escaped; opening it says so.
    """
    return listed(folder)[0]


def listed(folder: Path) -> tuple[list[str], dict[str, list[str]]]:
    """The images of a folder, and the files that hold their captions, by suffix and as absolute paths."""
    found, others = files_below(folder, IMAGE_SUFFIXES)
    beside = {suffix: others.pop(suffix) for suffix in (*SIDECARS, ".jsonl", ".csv") if found and suffix in others}
    stems = {os.path.splitext(os.path.join(folder, name))[0] for name in found} if beside else set()
    for suffix, paths in beside.items():
        own = [path for path in paths if _is_beside(path, stems)]
        if rest := sorted(set(paths) - set(own)):
            others[suffix] = rest
        beside[suffix] = own
    for suffix, every in sorted(others.items()) if found else ():
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


def add_references(folder: Path, rows: list[Entry], beside: dict[str, list[str]]) -> None:
    """Give the images of a folder the references that lie beside them: sidecars, and metadata as ImageFolder reads it.

    Raises:
        SourceError: a file that cannot be read whole.
    """
    try:
        sidecars = {os.path.splitext(path)[0]: path for suffix in SIDECARS[::-1] for path in beside.get(suffix, ())}
        for entry in rows if sidecars else ():
            if path := sidecars.get(os.path.splitext(os.path.join(folder, entry.name or ""))[0]):
                entry.references.extend(read_sidecar(Path(path)))
        known = {os.path.join(folder, entry.name or ""): entry for entry in rows}
        for path in [file for suffix in (".jsonl", ".csv") for file in beside.get(suffix, ())]:
            blanks = Blanks()
            for noun, number, name, value in read_metadata(Path(path)):
                place = f"{path}, {noun} {number}"
                file = os.path.join(os.path.dirname(path), as_name(name, "file_name", place))
                if file not in known:
                    skip("rows of metadata whose image is not in the folder", f"{place}: {name}")
                    continue
                references = as_references(value)
                if blanks.remove(references):
                    blanks.note(place)
                known[file].references.extend(references)
            blanks.say()
    except CaptionFileError as error:
        raise SourceError(str(error)) from error


def files_below(folder: Path, suffixes: Collection[str]) -> tuple[list[str], dict[str, list[str]]]:
    """The files below a folder with one of the suffixes, relative to it, and the paths of the others by suffix."""
    found, pending, seen = [], [("", folder)], {os.path.realpath(folder)}
    others: dict[str, list[str]] = {}
    while pending:
        prefix, current = pending.pop()
        try:
            entries = list(os.scandir(current))
        except OSError as error:
            if not prefix:
                raise SourceError(f"{current} cannot be read: {error.strerror}") from error
            skip("folders that cannot be read", f"{current}: {error.strerror}")
            continue
        for entry in entries:
            if entry.name.startswith("."):
                continue
            try:
                is_folder = entry.is_dir()
            except OSError as error:  # a link that leads to itself
                skip("links that lead nowhere", f"{entry.path}: {error.strerror}")
                continue
            suffix = os.path.splitext(entry.name)[1].lower()
            if is_folder:
                real = os.path.realpath(entry.path)
                if real not in seen:  # a link may lead back up
                    seen.add(real)
                    pending.append((f"{prefix}{entry.name}/", Path(entry.path)))
            elif suffix in suffixes:
                found.append(_utf8(prefix + entry.name))
            else:
                others.setdefault(suffix, []).append(_utf8(entry.path))
    return sorted(found), others


def _utf8(path: str) -> str:
    return path.encode("utf-8", "backslashreplace").decode("utf-8")
