"""Captions grouped by their image, so that a model looks at each image once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from captune.data.images import open_image
from captune.utils.hashing import pixels_digest

Pair = tuple[bytes, str]  # the digest of an image's pixels, and a caption


def digests(images: Sequence[Any]) -> list[bytes]:
    """Return what stands for the pixels of each image: equal for equal ones, whatever they are called.

    Raises:
        BadImage: one cannot be opened.
    """
    if not isinstance(images, (list, tuple)):  # opened on access: an object's id says nothing
        return [pixels_digest(open_image(image)) for image in images]
    known = {id(image): image for image in images}
    made = {key: pixels_digest(open_image(image)) for key, image in known.items()}
    return [made[id(image)] for image in images]


def by_image(captions: Sequence[str], images: Sequence[Any]) -> tuple[list[Pair], dict[Pair, int]]:
    """Return each row's pair of image and caption, and of each distinct pair the first row, those of an image together.

    Raises:
        BadImage: an image cannot be opened.
    """
    pairs = list(zip(digests(images), captions, strict=True))
    rows: dict[bytes, dict[Pair, int]] = {}
    for row, pair in enumerate(pairs):
        rows.setdefault(pair[0], {}).setdefault(pair, row)
    return pairs, {pair: row for own in rows.values() for pair, row in own.items()}
