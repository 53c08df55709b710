"""What a job leaves out: counted by its reason where it happens, said once where the command ends.

    skip("folders that cannot be read", "photos/private: Permission denied")

Without a command around it, as in a notebook, each is a warning in the log.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

logger = logging.getLogger(__name__)
SHOWN = 3  # items named for each reason

_COUNTS: ContextVar[dict[str, dict[str, None]] | None] = ContextVar("skipped", default=None)


def skip(reason: str, item: str) -> None:
    """Count an item that is left out; the same item of the same reason counts once.

    Args:
        reason: what the items of this kind are, in the plural, such as "images that cannot be opened".
        item: the item, with why if the reason does not say it.
    """
    counts = _COUNTS.get()
    if counts is None:
        logger.warning("left out (%s): %s", reason, item)
    else:
        logger.info("left out (%s): %s", reason, item)
        counts.setdefault(reason, {}).setdefault(item)


@contextmanager
def counting() -> Iterator[dict[str, dict[str, None]]]:
    """Yield {reason: its items}, which holds what is skipped inside."""
    counts: dict[str, dict[str, None]] = {}
    token = _COUNTS.set(counts)
    try:
        yield counts
    finally:
        _COUNTS.reset(token)


def sentences(counts: dict[str, dict[str, None]]) -> list[str]:
    """Say what was left out: a line for each reason, with its number and its first items."""
    said = []
    for reason, items in counts.items():
        named = [*list(items)[:SHOWN], *([f"and {len(items) - SHOWN} more"] if len(items) > SHOWN else [])]
        said.append(f"left out {len(items)}: {reason} ({'; '.join(named)})")
    return said
