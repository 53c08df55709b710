"""Where a model runs when nobody says."""

from __future__ import annotations

from typing import Any


def pick_device(device: Any = None) -> Any:
    """Return `device`, or "cuda" if there is a GPU, else "cpu"."""
    if device:
        return device
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
