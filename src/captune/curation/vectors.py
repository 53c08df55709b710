"""Vectors of many texts or images on the disk: made in parts, each kept, and never all in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from datasets import Dataset

from captune.curation.base import Work
from captune.data.checking import without_bad
from captune.data.columns import LazyImages
from captune.models.encoders import EncodesImages, EncodesTexts, unit_vectors
from captune.utils.files import replacing
from captune.utils.progress import Bar

TEXTS, IMAGES = 512, 64  # of a part


def text_vectors(texts: pa.ChunkedArray, encoder: EncodesTexts, work: Work, name: str) -> np.ndarray:
    """Return (N, D) float32 unit vectors of texts, memory-mapped.

    Args:
        texts: N texts.
        encoder: what encodes them.
        work: keeps the parts, and the whole.
        name: of these vectors among those of the step.
    """

    def part(start: int) -> np.ndarray:
        said = texts.slice(start, TEXTS).to_pylist()
        return unit_vectors(encoder.encode_texts(said), said)

    return encoded(len(texts), TEXTS, part, work, f"{name}-{encoder.digest}", f"encoding texts by {encoder.name}")


def image_vectors(
    images: Dataset, ids: Sequence[str], encoder: EncodesImages, work: Work, name: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return (n, D) float32 unit vectors, memory-mapped, of the images that open, and their n rows, ascending.

    Args:
        images: a source's.
        ids: of its images, in its order.
        encoder: what encodes them.
        work: keeps the parts, and the whole.
        name: of these vectors among those of the step.
    """
    row_of = {image_id: row for row, image_id in enumerate(ids)}
    mark = f"{name}-{encoder.digest}"

    def part(start: int) -> np.ndarray:
        good, bad = without_bad(images.select(range(start, min(start + IMAGES, len(ids)))), progress=False)
        unusable = {row_of[image_id] for image_id, _ in bad}
        rows = [row for row in range(start, min(start + IMAGES, len(ids))) if row not in unusable]
        work.keep(f"{mark}-rows-{start:09d}", np.array(rows, dtype=np.int64))
        if not rows:
            return np.zeros((0, 0), dtype=np.float32)
        return unit_vectors(encoder.encode_images(list(LazyImages(good))), [ids[row] for row in rows])

    vectors = encoded(len(ids), IMAGES, part, work, mark, f"encoding images by {encoder.name}")
    rows_of = [np.load(work.path(f"{mark}-rows-{start:09d}.npy")) for start in range(0, len(ids), IMAGES)]
    return vectors, np.concatenate(rows_of)


def encoded(count: int, size: int, make: Callable[[int], np.ndarray], work: Work, name: str, what: str) -> np.ndarray:
    """Return the vectors of `count` things, memory-mapped; a part that is on the disk is not made again.

    Args:
        count: of the things.
        size: of a part.
        make: the vectors of the part that begins at a place.
        work: keeps the parts until the whole is there.
        name: of these vectors among those of the step.
        what: for the bar.
    """
    whole = work.path(f"{name}.npy")
    if not whole.is_file():
        starts = range(0, count, size)
        paths = [work.path(f"{name}-{start:09d}.npy") for start in starts]
        todo = [(start, path) for start, path in zip(starts, paths, strict=True) if not path.is_file()]
        with Bar(total=count, desc=what, unit="", show=work.progress, delay=2) as bar:
            bar.update(count - sum(min(size, count - start) for start, _ in todo))
            for start, path in todo:
                work.keep(path.stem, make(start))
                bar.update(min(size, count - start))
        _join(paths, whole)
        for path in paths:
            path.unlink()
    return np.load(whole, mmap_mode="r")


def _join(parts: list[Path], whole: Path) -> None:
    shapes = [np.load(part, mmap_mode="r").shape for part in parts]  # one is open at a time
    shape = sum(length for length, _ in shapes), max((width for _, width in shapes), default=0)
    with replacing(whole) as temporary:
        out = np.lib.format.open_memmap(temporary, "w+", np.float32, shape)
        start = 0
        for part, (length, _) in zip(parts, shapes, strict=True):
            if length:
                out[start : start + length] = np.load(part)
            start += length
        del out  # flushes it
