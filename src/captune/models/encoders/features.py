"""Each distinct image is encoded once, however many captions of it are scored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from captune.data.images import opened
from captune.utils.hashing import pixels_digest
from captune.utils.memory import remembers
from captune.utils.progress import Bar

SHOWN = 500  # images from which on there is a bar: an evaluation's, no training step's


class ImageFeatureCache:
    """An image encoder that remembers the features of images, by their pixels.

    Args:
        encoder: anything with `encode_images(images) -> (N, D)`.
        keep: how many features are kept between calls; a reward scores each image many times.
    """

    def __init__(self, encoder: Any, *, keep: int = 20_000) -> None:
        self.encoder, self.keep = encoder, keep
        self._features: dict[bytes, torch.Tensor] = {}
        remembers(self)

    def clear(self) -> None:
        """Forget all features."""
        self._features.clear()

    def __call__(self, images: Sequence[Any], *, batch_size: int = 32) -> tuple[list[bytes], torch.Tensor]:
        """Return the key of each image's pixels, and their features (N, D)."""
        keys: list[bytes] = []
        rows: list[torch.Tensor] = []
        batches, shown = opened(images, batch_size), {"desc": "images", "unit": "batch", "leave": False}
        for batch in Bar(batches, total=-(-len(images) // batch_size), show=len(images) >= SHOWN, **shown):
            # a reward passes an image once for each of its captions, in a row
            different = {id(image): image for image in batch}
            digests = {key: pixels_digest(image) for key, image in different.items()}
            new = {digests[key]: image for key, image in different.items() if digests[key] not in self._features}
            made = [digests[id(image)] for image in batch]
            if new:
                self._features |= zip(new, torch.as_tensor(self.encoder.encode_images(list(new.values()))), strict=True)
            keys += made
            rows += [self._features[key] for key in made]
            for key in list(self._features)[: max(0, len(self._features) - self.keep)]:
                del self._features[key]
        return keys, torch.stack(rows) if rows else torch.empty(0, 0)
