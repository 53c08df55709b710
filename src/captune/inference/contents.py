"""Which content each caption is of: an image that was replaced under its name is captioned again on resume.

Beside ``caps.jsonl`` stands ``caps.jsonl.images.jsonl``: image_id, a digest of the image's bytes and, of a file, its
size and time, so that a resume reads only files whose size or time is another. Images that a program draws have none:
the source's name decides them. Of two lines about one image the last counts.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from captune.data.images import image_path, read_image
from captune.data.lines import CAPTIONS, Kind, read_lines, reorder
from captune.errors import BadImage
from captune.utils.files import cut_torn_line, jsonl_line, naming
from captune.utils.ids import Ids, digests

logger = logging.getLogger(__name__)

_COLUMNS = {"digest": pa.string(), "size": pa.int64(), "time": pa.int64()}
_WIDTH = 24  # bytes: the line's number, so that the last one counts, half of the digest, and what `_state` makes


class Content(NamedTuple):
    """What an image was when it was read."""

    digest: str
    size: int | None = None  # of a file
    time: int | None = None  # its modification, in ns


def content_of(image: Any, data: bytes) -> Content:
    """Return the content of an image whose bytes are `data`."""
    path = image_path(image)
    digest = hashlib.blake2b(data, digest_size=16).hexdigest()
    if path is None:
        return Content(digest)
    status = os.stat(path)
    return Content(digest, status.st_size, status.st_mtime_ns)


class Contents:
    """The contents of the images of a caption file.

    Args:
        path: the companion file.
        resume: read what it holds; False: start it again.
    """

    def __init__(self, path: Path, *, resume: bool) -> None:
        self.path = path
        self.replaced, self.unknown = list[str](), 0
        self._known: Ids | None = None
        if not resume:
            path.unlink(missing_ok=True)
        elif path.is_file():
            cut_torn_line(path)

    @property
    def known(self) -> Ids:
        """What the file held when it was first needed."""
        if self._known is None:
            self._known = Ids(_WIDTH)
            self._known.load(self._pieces() if self.path.is_file() else ())
        return self._known

    def _pieces(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for lines in read_lines(self.path, _COLUMNS):
            digest, size, time = lines.columns.values()
            values = np.empty((len(lines.ids), 3), dtype=">u8")
            values[:, 0] = lines.starts
            values[:, 1] = np.frombuffer(bytes.fromhex("".join([_half(one) for one in digest])), ">u8")
            values[:, 2] = [_state(*of) for of in zip(size, time, strict=True)]
            yield digests(lines.ids), values.view(np.uint8)

    def changed(self, ids: Sequence[str], images: Iterable[Any]) -> list[str]:
        """Return those of some ids with a caption whose image is another now.

        Args:
            ids: of the images.
            images: the images, undecoded; each is read where its size and time do not show what it is.
        """
        changed: list[str] = []
        touched: dict[str, Content] = {}
        known, values = self.known.find(digests(ids))
        self.unknown += int((~known).sum())
        halves, states = values.view(">u8")[:, 1:].T.tolist()
        for image_id, image, there, half, state in zip(ids, images, known.tolist(), halves, states, strict=True):
            if not there:
                continue
            try:
                path = image["path"] if isinstance(image, dict) and image.get("bytes") is None else None
                if path:
                    status = os.stat(path)
                    if _state(status.st_size, status.st_mtime_ns) == state:
                        continue
                now = content_of(image, read_image(image, image_id))
            except (BadImage, OSError):
                continue  # it is gone or cannot be read: no other image has its name
            if int(_half(now.digest), 16) != half:
                changed.append(image_id)
            elif path:
                touched[image_id] = now
        self.add(touched)
        self.replaced += changed
        return changed

    def say(self, kind: Kind = CAPTIONS) -> int:
        """Log what was found, in the words of what the file holds; returns how many images were replaced."""
        if self.replaced:
            logger.warning(
                "%d images were replaced since they were %s (the first: %s); they are %s again",
                len(self.replaced),
                kind.done,
                self.replaced[0],
                kind.done,
            )
        if self.unknown:
            logger.warning(
                "of %d images it is not known what they were when they were %s; their %s are kept",
                self.unknown,
                kind.done,
                kind.nouns,
            )
        return len(self.replaced)

    def add(self, contents: Mapping[str, Content]) -> None:
        """Append the contents of images that are about to get their captions."""
        if contents:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with naming(self.path), self.path.open("a", encoding="utf-8", newline="\n") as file:
                file.writelines(_line(image_id, content) for image_id, content in contents.items())

    def close(self, places: Ids, captioned: Ids) -> None:
        """Bring the file into the order of the images' places; what has no caption is left out."""
        self._known = None  # what is there now is read again
        if self.path.is_file():
            reorder(self.path, places, keep=captioned)


def _half(digest: Any) -> str:
    """Half of a digest, which tells an image from the one that replaced it; of none: zeros."""
    return digest[:16] if isinstance(digest, str) and len(digest) == 32 else "0" * 16


def _state(size: int | None, time: int | None) -> int:
    """One number for a file's size and time; 0 for what is no file."""
    return 0 if size is None or time is None else (size * 0x9E3779B97F4A7C15 + time) % 2**64


def _line(image_id: str, content: Content) -> str:
    row = {"image_id": image_id, **content._asdict()}
    return jsonl_line({key: value for key, value in row.items() if value is not None})
