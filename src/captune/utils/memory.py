"""What a process remembers between calls, such as the vectors of texts it has encoded, and forgets at a checkpoint.

An encoder's last bits depend on what is encoded together. A process that remembers encodes only what is new, so what
is encoded together depends on all that came before. Training forgets when it begins and whenever a checkpoint is
written: a run that resumes from it, and remembers nothing, so computes the same bits as one that never stopped.
"""

from __future__ import annotations

import weakref
from typing import Protocol


class Remembers(Protocol):
    """Anything that can be emptied."""

    def clear(self) -> None:
        """Forget everything."""


_known: weakref.WeakSet[Remembers] = weakref.WeakSet()


def remembers(cache: Remembers) -> None:
    """Have an object's `clear` called by `forget`, for as long as it lives."""
    _known.add(cache)


def forget() -> None:
    """Empty everything that was registered."""
    for cache in list(_known):
        cache.clear()
