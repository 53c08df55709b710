"""Vectors of many texts or images on the disk: made in parts, each kept, and never all in memory."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from captune.curation.base import Captions, Work, keep
from captune.curation.reading import read_table, write_table
from captune.data.checking import without_bad
from captune.data.columns import LazyImages
from captune.data.schemes import warn_if_blind
from captune.errors import CurationError
from captune.models.encoders import unit_vectors
from captune.utils.files import replacing

logger = logging.getLogger(__name__)
TEXTS, IMAGES = 512, 64  # of a part


class Loaded:
    """An encoder that every process loads once, by its name; it has to be the same in all of them.

    Args:
        load: a function of `captune.models.encoders`.
        name: of the encoder.
        device: where it runs.
        digest: of the encoder that was loaded first.
    """

    def __init__(self, load: Callable[..., Any], name: str, device: str | None, digest: str | None = None) -> None:
        self.load, self.name, self.device, self.digest = load, name, device, digest

    def __reduce__(self) -> tuple[Any, ...]:
        return Loaded, (self.load, self.name, self.device, self.it.digest)

    @cached_property
    def it(self) -> Any:
        """The encoder.

        Raises:
            CurationError: a worker has other weights.
        """
        made = self.load(self.name, self.device)
        if self.digest not in (None, made.digest):
            raise CurationError(f"a worker has other weights of {self.name} than the process that it works for")
        return made


def text_vectors(texts: pa.ChunkedArray, encoder: Loaded, work: Work, name: str) -> np.ndarray:
    """Return (N, D) float32 unit vectors of texts, memory-mapped.

    Args:
        texts: N texts.
        encoder: what encodes them.
        work: keeps the parts, and the whole.
        name: of these vectors among those of the step.
    """
    path = work.path(f"{name}.arrow").absolute()
    if work.pool.shared and not path.is_file():
        write_table(pa.table({"text": texts}), path)
    return _encoded(np.arange(len(texts)), TEXTS, _Texts(encoder, texts, path), work, name)


def image_vectors(
    captions: Captions, encoder: Loaded, work: Work, name: str, rows: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return (n, D) float32 unit vectors, memory-mapped, of images, and their n rows, ascending.

    Args:
        captions: whose images.
        encoder: what encodes them.
        work: keeps the parts, and the whole.
        name: of these vectors among those of the step.
        rows: of images that are known to open; None: all that open.
    """
    columns = captions.images.column_names
    warn_if_blind(f"encoding by {encoder.name}", f"encoder:{encoder.name}", captions.source, columns)
    wanted = np.arange(len(captions.image_ids)) if rows is None else rows
    vectors = _encoded(wanted, IMAGES, _Images(encoder, captions, rows is not None), work, name)
    if rows is not None:
        return vectors, rows
    paths = [_rows_beside(work.path(part)) for part, *_ in _parts(wanted, IMAGES, name, encoder)]
    return vectors, np.concatenate([np.load(path) for path in paths])


class _Texts:
    def __init__(self, encoder: Loaded, texts: pa.ChunkedArray, path: Path) -> None:
        self.encoder, self.texts, self.path = encoder, texts, path

    def __reduce__(self) -> tuple[Any, ...]:
        return _Texts.open, (self.encoder, self.path)

    @classmethod
    def open(cls, encoder: Loaded, path: Path) -> _Texts:
        return cls(encoder, read_table(path)["text"], path)

    def __call__(self, path: Path, places: np.ndarray) -> int:
        """Write the vectors of a part; tell how many of the texts were cut."""
        encoder, said = self.encoder.it, self.texts.take(pa.array(places)).to_pylist()
        before = getattr(encoder, "truncated", 0)
        keep(path, unit_vectors(encoder.encode_texts(said), said))
        return int(getattr(encoder, "truncated", 0) - before)


class _Images:
    def __init__(self, encoder: Loaded, captions: Captions, open_all: bool) -> None:
        self.encoder, self.captions, self.open_all = encoder, captions, open_all

    def __call__(self, path: Path, rows: np.ndarray) -> None:
        """Write the vectors of a part."""
        images, ids = self.captions.images.select(rows.tolist()), self.captions.image_ids.take(rows).to_pylist()
        if not self.open_all:
            images, bad = without_bad(images, progress=False)
            unusable = {image_id for image_id, _ in bad}
            opens = np.array([image_id not in unusable for image_id in ids], dtype=bool)
            rows, ids = rows[opens], [image_id for image_id in ids if image_id not in unusable]
            keep(_rows_beside(path), rows)
        if not len(rows):
            keep(path, np.zeros((0, 0), dtype=np.float32))
            return
        keep(path, unit_vectors(self.encoder.it.encode_images(list(LazyImages(images))), ids))


def _rows_beside(path: Path) -> Path:
    return path.with_name(f"rows-{path.name}")


def _parts(places: np.ndarray, size: int, name: str, encoder: Loaded) -> list[tuple[str, np.ndarray, int]]:
    parts = [(start, places[start : start + size]) for start in range(0, len(places), size)]
    return [(f"{name}-{encoder.it.digest}-{start:09d}.npy", part, len(part)) for start, part in parts]


def _encoded(places: np.ndarray, size: int, make: _Texts | _Images, work: Work, name: str) -> np.ndarray:
    """The vectors of what is at some places, memory-mapped; a part that is on the disk is not made again."""
    encoder: Loaded = make.encoder
    whole = work.path(f"{name}-{encoder.it.digest}-{len(places)}.npy")
    if not whole.is_file():
        parts = _parts(places, size, name, encoder)
        told = work.share(make, parts, f"encoding by {encoder.name}")
        if cut := sum(number for number in told if number):
            logger.warning("%d texts are longer than %s reads, and were cut", cut, encoder.name)
        paths = [work.path(part) for part, *_ in parts]
        _join(paths, whole)
        for path in paths:
            path.unlink()
    return np.load(whole, mmap_mode="r")


def _join(parts: Sequence[Path], whole: Path) -> None:
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
