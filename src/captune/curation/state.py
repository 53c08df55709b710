"""What source and steps of a curation name on the disk, and the state of its files: they must not change meanwhile.

Files and folders are named by the source, by ``?images=``, and by fields of steps: those that name files, and arguments
in the spec of a scorer or a model. Other texts, such as a prompt, are not looked at. A state is of names, sizes and
times; contents are not read.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import xxhash
from datasets import Dataset

from captune.data import load_images
from captune.data.columns import image_paths
from captune.data.naming import Source
from captune.data.shards import is_pattern, shards_of
from captune.errors import SourceError, UsageError
from captune.utils.skipped import counting

_PATHS = ("against", "images", "captions", "facts", "adapter", "prompt")  # fields of steps that name files and folders
_SPECS = ("by", "alike", "check", "judge", "model", "decoder")  # and those that may, in the spec of a scorer or a model
_PIECES = re.compile(r"[:=]([^\s*?&=,:]+)|([^\s*?&=,:]+\.py)\b")  # arguments, and files of scorers


def state_of(settings: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """Return {what source and steps name on the disk: the state of its files}.

    Args:
        settings: of the curation: source, as written, and steps.
        folder: the output.

    Raises:
        UsageError: the output holds the source or something else that is named, or lies in a folder that is the source.
    """
    found: dict[str, str] = {}
    own, source = os.path.realpath(folder), Source.parse(settings["source"]).where
    for name in dict.fromkeys([*_named_by_source(settings["source"]), *_named_by_steps(settings["steps"])]):
        path = os.path.abspath(os.path.expanduser(name))
        files = [path] if os.path.exists(path) else _shards_of(name)
        if not files or (name != source and path == os.path.abspath(folder)):  # a word is no file for its name
            continue
        for file in map(os.path.realpath, files):
            if _within(file, own) or (name == source and _within(own, file)):
                raise UsageError(f"{name} and the output {folder} lie in each other: name another folder")
        found[path] = _digest(files, own)
        if name == source and os.path.isfile(path) and (images := _images_of(settings["source"])):
            found[f"{path}, its images"] = _digest(images, own)
    return found


def _images_of(source: str) -> list[str]:
    """The images that a caption file names; none where they cannot be found."""
    with suppress(SourceError), counting():  # what is wrong is said where they are looked at
        dataset = load_images(source, decode=False)
        if isinstance(dataset, Dataset):
            return [path for path in image_paths(dataset) if path]
    return []


def _within(path: str, folder: str) -> bool:
    return os.path.commonpath([path, folder]) == folder


def _named_by_source(text: str) -> list[str]:
    try:
        parsed = Source.parse(text)
    except SourceError:  # no source, or said where it is read
        return []
    return [name for name in (parsed.where, parsed.images) if name]


def _named_by_steps(steps: Sequence[Mapping[str, Mapping[str, Any]]]) -> Iterator[str]:
    """What fields of steps name, whether it is there or not; texts such as a prompt are not looked at."""
    for step in steps:
        for name, value in ((name, value) for own in step.values() for name, value in own.items()):
            for text in value if isinstance(value, list) else [value]:
                if isinstance(text, str) and name in _PATHS:
                    yield from _named_by_source(text)
                elif isinstance(text, str) and name in _SPECS:
                    yield text
                    yield from (unquote(piece) for pieces in _PIECES.findall(text) for piece in pieces if piece)


def _shards_of(name: str) -> list[str]:
    """The shards that a pattern names."""
    with suppress(SourceError):  # said where it is read
        return shards_of(name) if is_pattern(name) else []
    return []


def _digest(paths: Sequence[str], output: str) -> str:
    """Names, sizes and times of files, and of all files of folders but those of the output."""
    files = []
    for path in paths:
        if not os.path.isdir(path):
            files.append(path)
        for where, folders, names in os.walk(path):
            folders[:] = [name for name in folders if os.path.realpath(os.path.join(where, name)) != output]
            files += [os.path.join(where, name) for name in names]
    digest = xxhash.xxh64()
    for file in sorted(files):
        with suppress(OSError):  # a link to nowhere
            status = os.stat(file)
            digest.update(os.fsencode(f"{file}\0{status.st_size}\0{status.st_mtime_ns}\n"))
    return digest.hexdigest()
