"""Which content each caption is of: an image that was replaced under its name is captioned again on resume.

Beside ``caps.jsonl`` stands ``caps.jsonl.images.jsonl``: image_id, a digest of the image's bytes and, of a file, its
size and time, so that a resume reads only files whose size or time is another. Images that a program draws have none:
the source's name decides them.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from datasets import Image as ImageFeature

from captune.data import ImageSource
from captune.data.images import image_path, read_image
from captune.errors import BadImage
from captune.utils.files import cut_torn_line, jsonl_line, read_jsonl, replace_file

logger = logging.getLogger(__name__)


class Content(NamedTuple):
    """What an image was when it was read."""

    digest: str
    size: int | None = None  # of a file
    time: int | None = None  # its modification, in ns


def content_of(image: Any, data: bytes) -> Content:
    """Return the content of an image whose bytes are `data`."""
    path = image_path(image)
    digest = hashlib.blake2b(data, digest_size=16).hexdigest()
    return Content(digest, *_size_and_time(path)) if path is not None else Content(digest)


def _size_and_time(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


class Contents:
    """The contents of the images of a caption file.

    Args:
        path: the companion file.
        resume: read what it holds; False: start it again.
    """

    def __init__(self, path: Path, *, resume: bool) -> None:
        self.path, self.known = path, dict[str, Content]()
        if not resume:
            path.unlink(missing_ok=True)
        elif path.is_file():
            cut_torn_line(path)
            for row in read_jsonl(path, problems=[]):
                if isinstance(row.get("image_id"), str) and isinstance(row.get("digest"), str):
                    self.known[row["image_id"]] = Content(row["digest"], row.get("size"), row.get("time"))

    def replaced(self, dataset: ImageSource, done: Collection[str]) -> set[str]:
        """Return the ids, of those that have a caption, whose image is another now; logged and counted."""
        if not done or not isinstance((dataset.features or {}).get("image"), ImageFeature):
            return set()  # drawn by a program: it would draw them all
        replaced: dict[str, None] = {}
        unknown = 0
        for row in dataset:
            image_id, image = str(row["image_id"]), row["image"]
            if image_id not in done or not isinstance(image, dict | str | bytes):
                continue
            if image_id not in self.known:
                unknown += 1
            elif self._differs(image_id, image):
                replaced[image_id] = None
        if replaced:
            first = next(iter(replaced))
            logger.warning(
                "%d images were replaced since they were captioned (the first: %s); they are captioned again",
                len(replaced),
                first,
            )
        if unknown:
            logger.warning(
                "of %d images it is not known what they were when they were captioned; their captions are kept", unknown
            )
        return set(replaced)

    def _differs(self, image_id: str, image: Any) -> bool:
        then, path = self.known[image_id], image_path(image)
        try:
            if path is not None and (then.size, then.time) == _size_and_time(path):
                return False
            now = content_of(image, read_image(image, image_id))
        except (BadImage, OSError):
            return False  # it is gone or cannot be read: no other image has its name
        self.known[image_id] = now
        return now.digest != then.digest

    def add(self, contents: Mapping[str, Content]) -> None:
        """Append the contents of images that are about to get their captions."""
        if contents:
            self.known.update(contents)
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8", newline="\n") as file:
                file.writelines(_line(image_id, content) for image_id, content in contents.items())

    def close(self, image_ids: Iterable[str]) -> None:
        """Rewrite the file in one step, in this order, where it would hold anything."""
        lines = [_line(image_id, self.known[image_id]) for image_id in image_ids if image_id in self.known]
        if lines and self.path.parent.is_dir():
            replace_file(self.path, "".join(lines))


def _line(image_id: str, content: Content) -> str:
    row = {"image_id": image_id, **content._asdict()}
    return jsonl_line({key: value for key, value in row.items() if value is not None})
