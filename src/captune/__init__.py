"""captune: improve image captioners, with or without labels, and measure what changed.

The names below are loaded on first use, so that ``import captune`` and ``captune --help`` stay fast.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from captune.utils import moved

if TYPE_CHECKING:
    from captune.data import load_images as load_images
    from captune.data import load_references as load_references
    from captune.errors import CaptuneError as CaptuneError
    from captune.evaluation import evaluate as evaluate
    from captune.evaluation import evaluate_files as evaluate_files
    from captune.evaluation import match as match
    from captune.evaluation import paired as paired
    from captune.models.captioner import Captioner as Captioner
    from captune.runs import RunDir as RunDir
    from captune.scorers import Scorer as Scorer
    from captune.scorers import load_reward as load_reward
    from captune.scorers import load_scorer as load_scorer

__version__ = "0.1.0"

_EXPORTS = {
    "Captioner": "captune.models.captioner",
    "CaptuneError": "captune.errors",
    "RunDir": "captune.runs",
    "Scorer": "captune.scorers",
    "evaluate": "captune.evaluation",
    "evaluate_files": "captune.evaluation",
    "load_images": "captune.data",
    "load_references": "captune.data",
    "load_reward": "captune.scorers",
    "load_scorer": "captune.scorers",
    "match": "captune.evaluation",
    "paired": "captune.evaluation",
}
__all__ = ["__version__", *_EXPORTS]

moved.install()


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(importlib.import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'captune' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
