"""The environment's switches that keep the libraries below captune offline.

Those libraries read them each in its own way: the value "x" is no to one of them and ends another.
"""

from __future__ import annotations

import os

from captune.errors import UsageError

OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
YES = ("1", "true", "yes", "on")
NO = ("", "0", "false", "no", "off")


def is_set(name: str) -> bool:
    """Return whether a switch says yes."""
    return os.environ.get(name, "").lower() in YES


def check() -> None:
    """Raise UsageError for a switch that says neither yes nor no."""
    for name in OFFLINE:
        if (value := os.environ.get(name, "")).lower() not in YES + NO:
            raise UsageError(f"the environment's {name} is {value!r}: set it to 1 or 0")
