"""What is remembered between calls is forgotten on demand, and keeps nothing alive."""

from __future__ import annotations

import gc
import weakref
from types import SimpleNamespace

import numpy as np
import torch

from captune.models.encoders.features import ImageFeatureCache
from captune.scorers.reference.capture import Capture
from captune.utils.memory import forget, remembers


class Cache:
    """One that counts."""

    cleared = 0

    def clear(self) -> None:
        self.cleared += 1


def test_forget_empties_what_lives() -> None:
    cache, gone = Cache(), Cache()
    remembers(cache)
    remembers(gone)
    seen = weakref.ref(gone)
    del gone
    gc.collect()
    forget()
    assert cache.cleared == 1 and seen() is None


def test_encoders_results_do_not_depend_on_what_was_asked_before(images: list) -> None:
    """Each batch is what the encoder would be given first thing; a third of every figure is its batch's size."""
    asked: list[int] = []

    def encode(things: list) -> torch.Tensor:
        asked.append(len(things))
        return torch.full((len(things), 2), float(len(things)))

    features = ImageFeatureCache(SimpleNamespace(encode_images=encode))
    features(images[:1])
    assert features(images[:2])[1].tolist() == [[1, 1], [1, 1]]  # each of its own batch
    forget()
    assert features(images[:2])[1].tolist() == [[2, 2], [2, 2]]
    capture = Capture(encoder=SimpleNamespace(encode_texts=encode))  # type: ignore[arg-type]
    capture.embed(["a dog"])
    capture.embed(["a dog", "a cat"])
    forget()
    capture.embed(["a dog", "a cat"])
    assert asked == [1, 1, 2, 1, 1, 2] and np.allclose(capture._vectors["a dog"], 2)
