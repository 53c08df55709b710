"""The order in which a source's images are captioned: windows of it, the costliest image of a window first."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from datasets import IterableDataset

from captune.data import ImageSource, load_images
from captune.data.columns import column, undecoded
from captune.data.images import decoded_pixels, image_size
from captune.data.readers import nfc
from captune.errors import BadImage, CaptionFileError
from captune.inference.contents import Content


class Row(NamedTuple):
    """One image.

    Attributes:
        place: its number in the source.
        image_id: its id.
        image: not opened yet.
        content: what was read when it was opened.
        pixels: those of its header.
    """

    place: int
    image_id: str
    image: Any
    content: Content | None = None
    pixels: int = 0


def select_images(source: str | ImageSource, limit: int | None) -> ImageSource:
    """Return the first `limit` images of a source or a dataset, undecoded."""
    if isinstance(source, str | Path):
        return load_images(str(source), limit=limit, decode=False, stream=True)
    dataset = undecoded(source)
    if limit is None:
        return dataset
    return (
        dataset.take(limit) if isinstance(dataset, IterableDataset) else dataset.select(range(min(limit, len(dataset))))
    )


def windows(dataset: ImageSource, size: int, places: dict[str, int], done: frozenset[str]) -> Iterator[list[Row]]:
    """Yield rows of the source in pieces of `size`; pieces that are done are not read.

    Args:
        dataset: the images.
        size: rows per piece.
        places: receives {image_id: index in the source}.
        done: the ids that have a caption.

    Raises:
        CaptionFileError: two images have the same id.
    """

    def place(image_id: str, index: int) -> None:
        if places.setdefault(image_id, index) != index:
            raise CaptionFileError(f"two images of the source have the image_id {image_id!r}; give each its own")

    if isinstance(dataset, IterableDataset):
        stream = enumerate(dataset)
        while piece := list(itertools.islice(stream, size)):
            rows = [Row(index, nfc(str(row["image_id"])), row["image"]) for index, row in piece]
            for row in rows:
                place(row.image_id, row.place)
            yield rows
        return
    ids = [nfc(str(image_id)) for image_id in column(dataset, "image_id")]
    for index, image_id in enumerate(ids):
        place(image_id, index)
    for start in range(0, len(ids), size):
        span = range(start, min(start + size, len(ids)))
        if any(ids[index] not in done for index in span):
            yield [Row(index, ids[index], dataset[index]["image"]) for index in span]


def split(rows: list[Row], size: int, pixels: int) -> Iterator[list[Row]]:
    """Yield batches of `size` rows; one whose images decode to more than so many `pixels` is taken in several."""
    for start in range(0, len(rows), size):
        batch: list[Row] = []
        for row in rows[start : start + size]:
            if batch and decoded([*batch, row]) > pixels:
                yield batch
                batch = []
            batch.append(row)
        yield batch


def decoded(rows: list[Row]) -> int:
    """Return how many pixels the images of a batch have in memory."""
    return sum(decoded_pixels(row.pixels) for row in rows)


def cost(row: Row) -> int:
    """Return an image's pixels, which set its number of image tokens; 0 where its header cannot be read."""
    try:
        width, height = image_size(row.image, row.image_id)
    except BadImage:
        return 0
    return width * height
