"""Each distinct image, by its pixels, is encoded once, however many captions of it are judged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from captune.data.images import open_image
from captune.utils.hashing import pixels_digest


class ImageFeatureCache:
    """An image encoder that remembers.

    Args:
        encoder: anything with `encode_images(images) -> (N, D)`.
        keep: features kept from call to call; a reward sees each image many times.
    """

    def __init__(self, encoder: Any, *, keep: int = 20_000) -> None:
        self.encoder, self.keep = encoder, keep
        self._known: dict[bytes, torch.Tensor] = {}

    def __call__(self, images: Sequence[Any], *, batch_size: int = 32) -> tuple[list[bytes], torch.Tensor]:
        """(the key of each image's pixels, their features (N, D))."""
        keys: list[bytes] = []
        rows: list[torch.Tensor] = []
        for start in range(0, len(images), batch_size):
            batch = [images[i] for i in range(start, min(start + batch_size, len(images)))]
            # a reward names an image once for each of its captions, one after the other
            pictures = {place: open_image(image) for place, image in {id(image): image for image in batch}.items()}
            digests = {place: pixels_digest(picture) for place, picture in pictures.items()}
            new = {digests[place]: picture for place, picture in pictures.items() if digests[place] not in self._known}
            made = [digests[id(image)] for image in batch]
            if new:
                self._known |= zip(new, torch.as_tensor(self.encoder.encode_images(list(new.values()))), strict=True)
            keys += made
            rows += [self._known[key] for key in made]
            for key in list(self._known)[: max(0, len(self._known) - self.keep)]:
                del self._known[key]
        return keys, torch.stack(rows) if rows else torch.empty(0, 0)
