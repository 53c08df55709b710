"""Digests of content: figures and caches are keyed by content, since two things may have one name."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image


def weights_digest(state: Mapping[str, Any]) -> str:
    """Return the first 8 hex digits of a SHA-256 of a model's weights (its `state_dict`).

    A pooler's weights do not count: no pooler is used here, and one that was not saved is initialised at random at
    every load.
    """
    import torch

    digest = hashlib.sha256()
    for key, value in sorted(state.items()):
        if "pooler" in key.split("."):
            continue
        digest.update(key.encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:8]


def fingerprint(data: str | bytes) -> str:
    """Return 8 hex digits that change with the data."""
    return hashlib.sha256(data.encode() if isinstance(data, str) else data).hexdigest()[:8]


def pixels_digest(image: Image) -> bytes:
    """Return 16 bytes that stand for an image's mode, size and pixels."""
    return hashlib.blake2b(f"{image.mode} {image.size} ".encode() + image.tobytes(), digest_size=16).digest()
