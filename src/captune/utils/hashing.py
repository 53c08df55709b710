"""Content as a few hexadecimal digits or bytes: what figures and caches are keyed by, since names say little."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image


def weights_digest(state: Mapping[str, Any]) -> str:
    """The first 8 hex digits of a SHA-256 of a model's weights (its `state_dict`).

    A pooler's weights do not count: nothing here is read from one, and where a model was saved without one they are
    drawn at random at every load.
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
    """8 hex digits that change with the data."""
    return hashlib.sha256(data.encode() if isinstance(data, str) else data).hexdigest()[:8]


def pixels_digest(picture: Image) -> bytes:
    """16 bytes that stand for an image's mode, size and pixels."""
    return hashlib.blake2b(f"{picture.mode} {picture.size} ".encode() + picture.tobytes(), digest_size=16).digest()
