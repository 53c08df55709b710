"""Encoders whose vectors are known, and captioned sources, for the tests of retrieval."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from broken_images import encode, photo
from source_files import write

from captune.corpus import Corpus
from captune.data import open_image

WORDS = ["red", "blue", "green", "ball", "house", "fish", "bird", "boat", "beach", "meadow", "sky", "cat", "dog", "two"]


class Bag:
    """Texts as bags of words of the list above; images by a digest of their pixels. Unit vectors; counts its work."""

    name = "bag"

    def __init__(self, digest: str = "bag1", dimension: int = 8) -> None:
        self.digest, self.dimension = digest, dimension
        self.texts: list[str] = []
        self.images = 0

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        self.texts += texts
        rows = np.array([[text.split().count(word) for word in WORDS] + [0.1] for text in texts], dtype=np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    def encode_images(self, images: Sequence[Any]) -> np.ndarray:
        self.images += len(images)
        return np.stack([self.of(image) for image in images])

    def of(self, image: Any) -> np.ndarray:
        seed = int.from_bytes(hashlib.sha256(open_image(image).tobytes()).digest()[:4], "big")
        vector = np.random.default_rng(seed).standard_normal(self.dimension).astype(np.float32)
        return vector / np.linalg.norm(vector)


def captions_of(count: int, each: int = 2) -> list[list[str]]:
    """Captions out of the words above, the same every time; some are equal."""
    rng = np.random.default_rng(0)
    return [[" ".join(rng.choice(WORDS, size=rng.integers(1, 4))) for _ in range(each)] for _ in range(count)]


def source(folder: Path, captions: Sequence[Sequence[str]]) -> str:
    """A JSONL source with an image file per row: image ids 000.png ..."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for i, own in enumerate(captions):
        name = f"{i:03d}.png"
        (folder / name).write_bytes(encode(photo(seed=i), "PNG"))
        lines.append(json.dumps({"image": name, "image_id": name, "captions": list(own)}))
    return str(write(folder / "captions.jsonl", "\n".join(lines) + "\n"))


def build(source: Any, folder: Path, encoder: Bag | None = None, **options: Any) -> Corpus:
    """A corpus in several small pieces."""
    encoder = encoder or Bag()
    return Corpus.build(source, folder, **{"text_encoder": encoder, "image_encoder": encoder, "shard_size": 8,
                                           "batch_size": 3, "progress": False, **options})  # fmt: skip
