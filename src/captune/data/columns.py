"""The columns of an image source: images that `open_image` opens on access, left undecoded, or left out."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeAlias

import pyarrow.compute as pc
from datasets import Dataset, Features, Image, IterableDataset
from PIL.Image import Image as PILImage

from captune.data.images import LARGE_PIXELS, open_image

ImageSource: TypeAlias = Dataset | IterableDataset
TRAINING_PIXELS = 400_000_000  # of a batch that is learned from: 1.6 GB; 32 photos of 12 megapixels


@dataclass
class SafeImage(Image):
    """An image feature of `datasets` that `open_image` decodes, row by row.

    Attributes:
        large: an image with more pixels is reduced.
    """

    large = LARGE_PIXELS  # no field of the dataclass: `datasets` writes those into its files

    def decode_example(self, value: Any, token_per_repo_id: Any = None) -> PILImage:
        """Return the image, opened by `open_image`."""
        return open_image(value, large=self.large)


def bounded(dataset: ImageSource, batch_size: int) -> ImageSource:
    """Return a decoded dataset of which `batch_size` images have no more than `TRAINING_PIXELS`: each is reduced.

    A batch whose gradient is one cannot be taken in several. Fewer than 2,048 x 2,048 pixels are never reduced.
    """
    feature = (dataset.features or {}).get("image")
    large = max(2**22, TRAINING_PIXELS // batch_size)
    if not isinstance(feature, SafeImage) or large >= feature.large:
        return dataset
    smaller = SafeImage()
    smaller.large = large
    return dataset.cast_column("image", smaller)


def decoded(dataset: ImageSource) -> ImageSource:
    """Return the dataset with images that `open_image` opens on access."""
    if isinstance(dataset, IterableDataset):  # its columns keep the types of its last map
        return dataset.map(_open_row, features=Features({**dataset.features, "image": SafeImage()}))
    return dataset.cast_column("image", SafeImage())


def _open_row(row: dict[str, Any]) -> dict[str, Any]:
    return {"image": open_image(row["image"], row["image_id"])}


def undecoded(dataset: ImageSource) -> ImageSource:
    """Return the dataset with images as {"bytes", "path"}; one that draws its images on access is unchanged."""
    feature = (dataset.features or {}).get("image")
    return dataset.cast_column("image", Image(decode=False)) if isinstance(feature, Image) else dataset


def column(dataset: ImageSource, name: str) -> list[Any]:
    """Return one column as a list, without decoding or drawing any image."""
    if isinstance(dataset, IterableDataset):
        return [row[name] for row in undecoded(dataset)]
    return list(dataset.with_format(None)[name])


def read_digest(dataset: object) -> str | None:
    """Return a digest of ids and references, in order; None of a stream, and of what is no dataset of images."""
    if not isinstance(dataset, Dataset) or "image_id" not in dataset.column_names:
        return None
    return _digest_of(
        dataset, [name for name in ("image_id", "references") if name in dataset.column_names]
    ).hexdigest()


def content_digest(dataset: object) -> str | None:
    """Return a digest of all columns and of the images' sizes, in order; None as of `read_digest`.

    Of the images the sizes in bytes count, of 2,000 at most, evenly spaced: to read them all would take as long as a
    pass of training. What is drawn on access, or lies at an address, has none.
    """
    if not isinstance(dataset, Dataset) or "image_id" not in dataset.column_names:
        return None
    digest = _digest_of(dataset, sorted(set(dataset.column_names) - {"image"}))
    if isinstance((dataset.features or {}).get("image"), Image):
        for size in image_sizes(dataset.select(range(0, len(dataset), max(1, -(-len(dataset) // 2_000))))):
            digest.update(str(size).encode())
    return digest.hexdigest()


def _digest_of(dataset: Dataset, names: list[str]) -> Any:
    """A digest, still open, of columns that hold no images."""
    digest = hashlib.blake2b(digest_size=8)
    plain = dataset.select_columns(names).with_format("arrow")
    for start in range(0, len(dataset), 10_000):
        digest.update(json.dumps(plain[start : start + 10_000].to_pydict(), default=repr).encode())
    return digest


def image_sizes(dataset: Dataset) -> Iterator[int | None]:
    """Yield the bytes of each image, which are not read; None where it lies at an address or is gone."""
    images: Any = undecoded(dataset.select_columns(["image"])).with_format("arrow")
    for start in range(0, len(dataset), 1_000):
        column = images[start : start + 1_000]["image"]
        inside, paths = (pc.struct_field(column, name) for name in ("bytes", "path"))
        for size, path in zip(pc.binary_length(inside).to_pylist(), paths.to_pylist(), strict=True):
            if size is None:
                with suppress(OSError, TypeError, ValueError):
                    size = os.stat(path).st_size
            yield size


def image_paths(dataset: Dataset) -> list[str | None]:
    """Return the files of a dataset's images, in order; empty where they are no files."""
    if not isinstance((dataset.features or {}).get("image"), Image):
        return []
    images = dataset.select_columns(["image"]).with_format("arrow")
    found: list[str | None] = []
    for start in range(0, len(dataset), 1_000):
        column: Any = images[start : start + 1_000]["image"]  # by parts: the bytes of all may be more than one holds
        held, paths = (pc.struct_field(column, name) for name in ("bytes", "path"))
        found += [
            None if has else path for has, path in zip(held.is_valid().to_pylist(), paths.to_pylist(), strict=True)
        ]
    return found if any(found) else []


class LazyImages(Sequence[Any]):
    """The images of a dataset, opened (or drawn) when they are read, not all at once."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: Any) -> Any:
        return self.dataset[index]["image"]


class Chosen(Sequence[Any]):
    """Some of a sequence, each taken when it is read, so that not all images are open at once."""

    def __init__(self, items: Sequence[Any], rows: Sequence[int]) -> None:
        self.items, self.rows = items, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        return self.items[self.rows[index]]
