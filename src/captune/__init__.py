"""captune: improve image captioners, with or without labels, and measure what changed.

The names below are loaded on first use, so that ``import captune`` and ``captune --help`` stay fast.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_EXPORTS = {
    "CaptuneError": "captune.errors",
    "Captioner": "captune.models.captioner",
    "load_images": "captune.data",
    "load_references": "captune.data",
    "load_scorer": "captune.scorers",
    "load_reward": "captune.scorers",
    "evaluate": "captune.evaluation",
    "paired": "captune.evaluation",
    "match": "captune.evaluation",
    "RunDir": "captune.runs",
}
__all__ = ["__version__", *_EXPORTS]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(importlib.import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'captune' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
