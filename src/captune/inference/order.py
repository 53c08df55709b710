"""The order in which a source's images are captioned: windows of it, the costliest image of a window first."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, IterableDataset
from datasets import Image as ImageFeature

from captune.data import ImageSource, load_images
from captune.data.columns import undecoded
from captune.data.images import decoded_pixels, image_size
from captune.data.readers import nfc
from captune.errors import BadImage, CaptionFileError
from captune.inference.contents import Content
from captune.inference.outputs import Output
from captune.utils.ids import Ids, as_values, digests

BLOCK = 2**14  # rows of a table that are looked up together


class Row(NamedTuple):
    """One image.

    Attributes:
        place: its number in the source.
        image_id: its id.
        image: not opened yet.
        done: whether it has a caption.
        content: what was read when it was opened.
        pixels: those of its header.
    """

    place: int
    image_id: str
    image: Any
    done: bool = False
    content: Content | None = None
    pixels: int = 0


def select_images(source: str | ImageSource, limit: int | None) -> ImageSource:
    """Return the first `limit` images of a source or a dataset, undecoded."""
    if isinstance(source, str | Path):
        return load_images(str(source), limit=limit, decode=False, stream=True, references=False)
    dataset = undecoded(source)
    if limit is None:
        return dataset
    return (
        dataset.take(limit) if isinstance(dataset, IterableDataset) else dataset.select(range(min(limit, len(dataset))))
    )


class Windows:
    """The images of a source, a window at a time, and which of them have a caption.

    Args:
        dataset: the images.
        size: rows of a window.
        output: knows which of them have a caption.

    Attributes:
        total: images of the source, as far as it was read.
        skipped: those of them that have a caption.
        places: their numbers in the source, by id.
    """

    def __init__(self, dataset: ImageSource, size: int, output: Output) -> None:
        self.dataset, self.size, self.output = dataset, size, output
        feature = (dataset.features or {}).get("image")
        self.stored = isinstance(feature, ImageFeature) and not feature.decode  # not drawn by a program
        self.total = self.skipped = 0
        self.places = Ids(8)

    def __iter__(self) -> Iterator[tuple[int, list[Row]]]:
        """Yield how many more images have a caption, and the rows of a window that are looked at.

        Raises:
            CaptionFileError: two images have the same id; nothing has been captioned then, unless it is a stream.
        """
        return self._of_stream() if isinstance(self.dataset, IterableDataset) else self._of_rows(self.dataset)

    def _of_stream(self) -> Iterator[tuple[int, list[Row]]]:
        stream = iter(self.dataset)
        while rows := list(itertools.islice(stream, self.size)):
            ids = [nfc(str(row["image_id"])) for row in rows]
            image = [row["image"] for row in rows].__getitem__
            places = range(self.total, self.total + len(ids))
            if (repeated := self.places.add(digests(ids), as_values(np.array(places)))).any():
                raise _same_id(ids[int(repeated.argmax())])
            self.total += len(ids)
            done = self.output.have(ids, image if self.stored else None)
            yield self._window(places, ids, done, image)

    def _of_rows(self, dataset: Dataset) -> Iterator[tuple[int, list[Row]]]:
        """What has no caption comes first, so that a resume starts soon; then what may be of a replaced image."""
        block = self.size * max(1, BLOCK // self.size)
        blocks = [range(start, min(start + block, len(dataset))) for start in range(0, len(dataset), block)]
        columns = dataset.select_columns(["image_id"]).with_format("arrow")
        self.total = len(dataset)
        if self.places.load(
            (digests(_ids(columns[span.start : span.stop])), as_values(np.arange(span.start, span.stop)))
            for span in blocks
        ):
            raise _same_id(_first_repeated(_ids(columns[span.start : span.stop]) for span in blocks))
        before = np.zeros(len(dataset), dtype=bool)
        for span in blocks:
            ids = _ids(columns[span.start : span.stop])
            done = before[span.start : span.stop] = self.output.have(ids, None)
            for start in range(0, len(ids), self.size):
                part = slice(start, start + self.size)
                image = partial(_image_of, dataset, span.start + start)
                yield self._window(span[part], ids[part], done[part], image)
        if not self.stored:
            return
        columns = dataset.select_columns(["image_id", "image"]).with_format("arrow")
        for span in blocks:
            rows = np.flatnonzero(before[span.start : span.stop])
            if not len(rows):
                continue
            table = columns[span.start : span.stop]
            ids, undrawn = _ids(table), _image_getter(table["image"])
            done = self.output.have([ids[row] for row in rows], partial(_nth, undrawn, rows.tolist()))
            for start in np.unique(rows[~done] // self.size) * self.size:
                part = (start <= rows) & (rows < start + self.size)
                again = int((~done[part]).sum())
                self.skipped -= again
                window = zip(rows[part].tolist(), done[part].tolist(), strict=True)
                yield -again, [Row(span.start + row, ids[row], undrawn(row), there) for row, there in window]

    def _window(
        self, places: range, ids: list[str], done: np.ndarray, image: Callable[[int], Any]
    ) -> tuple[int, list[Row]]:
        there = int(done.sum())
        self.skipped += there
        if there == len(ids):
            return there, []
        return there, [Row(places[at], ids[at], image(at), bool(done[at])) for at in range(len(ids))]


def _image_of(dataset: Dataset, first: int, at: int) -> Any:
    return dataset[first + at]["image"]


def _nth(image: Callable[[int], Any], rows: list[int], at: int) -> Any:
    return image(rows[at])


def _same_id(image_id: str) -> CaptionFileError:
    return CaptionFileError(f"two images of the source have the image_id {image_id!r}; give each its own")


def _first_repeated(pieces: Iterable[list[str]]) -> str:
    seen = Ids()
    for ids in pieces:
        if (repeated := seen.add(digests(ids))).any():
            return ids[int(repeated.argmax())]
    raise AssertionError("no id stands twice")


def _ids(table: pa.Table) -> list[str]:
    return [nfc(str(image_id)) for image_id in table["image_id"].to_pylist()]


def _image_getter(column: pa.ChunkedArray) -> Callable[[int], Any]:
    """Return what gives the image of a row; the bytes of others are not copied."""
    paths = pc.struct_field(column, "path").to_pylist()
    alone = pc.is_null(pc.struct_field(column, "bytes")).to_pylist()
    return lambda row: {"bytes": None, "path": paths[row]} if alone[row] else column[row].as_py()


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
