"""Each image is decoded and preprocessed once, however often a batch names it.

GRPO names every image G times, and TRL runs the processor twice on such a batch. `PreprocessingCache` replaces the
image processor of a transformers processor, `RowCache` a dataset.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch.utils.data import Dataset
from transformers import BatchFeature

from captune.errors import CaptionerError
from captune.utils.hashing import pixels_digest


class PreprocessingCache:
    """Shares the preprocessing of equal images and remembers the last batch.

    A context manager; `remove()` restores the processor.

    Attributes:
        images: images preprocessed.
        asked: images asked for.

    Args:
        processor: a transformers processor with an `image_processor`.
    """

    def __init__(self, processor: Any) -> None:
        self.processor, self.original = processor, processor.image_processor
        self.images = self.asked = 0
        self._last: tuple[Any, BatchFeature] | None = None
        processor.image_processor = self

    def remove(self) -> None:
        """Restore the processor's own image processor."""
        self.processor.image_processor = self.original

    def __enter__(self) -> PreprocessingCache:
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.original, name)

    def __call__(self, images: Any, **kwargs: Any) -> BatchFeature:
        """Return what the original returns, as tensors; all but PIL images, flat or one to a list, is passed on."""
        nested = bool(images) and all(isinstance(image, (list, tuple)) and len(image) == 1 for image in images)
        flat: list[Any] = [image[0] for image in images] if nested else images
        if not isinstance(flat, (list, tuple)) or not all(isinstance(image, Image.Image) for image in flat):
            return self.original(images, **kwargs)
        kwargs["return_tensors"] = "pt"
        digests = {id(image): pixels_digest(image) for image in {id(image): image for image in flat}.values()}
        keys = [digests[id(image)] for image in flat]
        distinct = list(dict.fromkeys(keys))
        asked = (keys, nested, repr(sorted(kwargs.items())))
        self.asked += len(keys)
        if self._last is None or self._last[0] != asked:
            self.images += len(distinct)
            chosen = [flat[keys.index(key)] for key in distinct]
            once = self.original([[image] for image in chosen] if nested else chosen, **kwargs)
            self._last = asked, repeated(once, [distinct.index(key) for key in keys], len(distinct))
        return BatchFeature(dict(self._last[1]))


def repeated(once: BatchFeature, index: Sequence[int], count: int) -> BatchFeature:
    """Repeat entries: entry i is entry index[i] of what an image processor returned for `count` images.

    `pixel_values` has a row for each image, or a run of rows: patches (`image_grid_thw`) or tiles (`num_patches`).

    Raises:
        CaptionerError: the image processor returned another number of something.
    """
    grid, tiles = once.get("image_grid_thw"), once.get("num_patches")
    lengths = grid.prod(-1).tolist() if grid is not None else [int(n) for n in tiles] if tiles is not None else None
    out: dict[str, Any] = {}
    for name, value in once.items():
        if name == "pixel_values" and lengths is not None:
            runs = value.split(lengths)
            out[name] = torch.cat([runs[i] for i in index])
        elif len(value) != count:
            raise CaptionerError(f"the image processor returned {len(value)} {name} for {count} images")
        else:
            out[name] = value[list(index)] if isinstance(value, torch.Tensor) else [value[i] for i in index]
    return BatchFeature(out)


class RowCache(Dataset):
    """A `datasets.Dataset` whose rows are decoded once for a batch that names them several times.

    Args:
        dataset: the dataset, read row by row.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.dataset[index]

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        distinct = list(dict.fromkeys(indices))
        rows = dict(zip(distinct, self.dataset.__getitems__(distinct), strict=True))
        return [dict(rows[index]) for index in indices]
