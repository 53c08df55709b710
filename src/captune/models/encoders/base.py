"""What every encoder is: something with a name and a digest that turns texts, or images, into unit vectors.

A corpus has a slot for each; torch is not imported here, so that a corpus can be opened and checked without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from captune.errors import EncoderError
from captune.models.hub import DEFAULT_TEXT_ENCODER
from captune.utils.hashing import weights_digest

#: CIM used laion/CLIP-ViT-H-14-laion2B-s32B-b79K; this one needs no download
DEFAULT_IMAGE_ENCODER = "storybook-clip"

#: in config.json: a pair of `captune.models.encoders.pair`
PAIR = "captune_pair"

__all__ = [
    "DEFAULT_IMAGE_ENCODER",
    "DEFAULT_TEXT_ENCODER",
    "PAIR",
    "EncodesBoth",
    "EncodesImages",
    "EncodesTexts",
    "described",
    "unit_vectors",
]


class LoadedEncoder:
    """What encoders of captune have in common: a model.

    Attributes:
        model: a torch module.
    """

    model: Any

    @property
    def device(self) -> Any:
        """Where the weights are, a `torch.device`."""
        return self.model.device

    @cached_property
    def weights(self) -> str:
        """8 hex digits of the weights alone, which corpora of format 1 know."""
        return weights_digest(self.model.state_dict())


class EncodesTexts(Protocol):
    """The text slot: `TextEncoder`, `Encoder`, or anything of this shape."""

    name: str

    @property
    def digest(self) -> str:
        """8 hex digits of all that decides the vectors (`captune.utils.hashing.identity`)."""

    def encode_texts(self, texts: Sequence[str]) -> Any:
        """Encode texts: (N, D) unit vectors."""


class EncodesImages(Protocol):
    """The image slot: `Encoder`, `VisionEncoder`, or anything of this shape."""

    name: str

    @property
    def digest(self) -> str:
        """8 hex digits of all that decides the vectors (`captune.utils.hashing.identity`)."""

    def encode_images(self, images: Sequence[Any]) -> Any:
        """Encode images: (N, D) unit vectors."""


class EncodesBoth(Protocol):
    """Images and texts in one space: `Encoder`, `PairEncoder`, or anything of this shape."""

    name: str
    model: Any

    @property
    def digest(self) -> str:
        """8 hex digits of all that decides the vectors (`captune.utils.hashing.identity`)."""

    @property
    def context_length(self) -> int | None:
        """The most tokens of a text."""

    @property
    def truncated(self) -> int:
        """How many of the texts encoded so far were longer, and cut."""

    def encode_images(self, images: Sequence[Any], *, batch_size: int = 32) -> Any:
        """Encode images: (N, D) unit vectors."""

    def encode_texts(self, texts: Sequence[str], *, batch_size: int = 64) -> Any:
        """Encode texts: (N, D) unit vectors."""


def described(encoder: Any) -> str:
    """Return an encoder's name and digest for signatures, with what has to be known of its figures, if anything."""
    note = getattr(encoder, "note", "")
    return f"{encoder.name}@{encoder.digest}" + (f" ({note})" if note else "")


def unit_vectors(vectors: Any, names: Sequence[str]) -> np.ndarray:
    """Normalise what an encoder gives.

    Args:
        vectors: (N, D).
        names: of the N items, for messages.

    Returns:
        (N, D), contiguous float32 with unit rows.

    Raises:
        EncoderError: another shape, or a vector without a direction; the message names the first such item.
    """
    array = np.ascontiguousarray(vectors, dtype=np.float32)
    problem = None
    if array.ndim != 2 or len(array) != len(names):
        problem = f"the encoder gives an array of shape {array.shape} for {len(names)} items"
    else:
        norms = np.linalg.norm(array, axis=1, keepdims=True)
        lost = np.flatnonzero(~(np.isfinite(norms[:, 0]) & (norms[:, 0] > 0)))
        if len(lost):
            problem = f"the encoder gives {names[lost[0]]!r} a vector of length {norms[lost[0], 0]}"
    if problem is not None:
        raise EncoderError(problem)
    return array / norms
