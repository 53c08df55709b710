"""What a job leaves out: counted by its reason where it happens, said once where the command ends.

    skip("folders that cannot be read", "photos/private: Permission denied")

Without a command around it, as in a notebook, each is a warning in the log.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from captune.utils.wording import counted

logger = logging.getLogger(__name__)
SHOWN = 3  # items named for each reason

_COUNTS: ContextVar[dict[str, dict[str, int]] | None] = ContextVar("skipped", default=None)


class Told(str):
    """No reason to leave anything out, but what became of some captions, said and counted alike."""


def skip(reason: str, item: str, count: int = 1) -> None:
    """Count an item that is left out; the same item of the same reason counts once.

    Args:
        reason: what the items of this kind are, in the plural, such as "images that cannot be opened"; or `Told`.
        item: the item, with why if the reason does not say it.
        count: how many there are, where `item` is the first of many.
    """
    more = f" and {count - 1} more" if count > 1 else ""
    counts = _COUNTS.get()
    what = reason if isinstance(reason, Told) else f"left out ({reason})"
    if counts is None:
        logger.warning("%s: %s%s", what, item, more)
    else:
        logger.info("%s: %s%s", what, item, more)
        counts.setdefault(reason, {})[item] = count


@contextmanager
def counting() -> Iterator[dict[str, dict[str, int]]]:
    """Yield {reason: its items}, which holds what is skipped inside."""
    counts: dict[str, dict[str, int]] = {}
    token = _COUNTS.set(counts)
    try:
        yield counts
    finally:
        _COUNTS.reset(token)


def sentences(counts: dict[str, dict[str, int]]) -> list[str]:
    """Say what was left out: a line for each reason, with its number and its first items."""
    said = []
    for reason, items in counts.items():
        named, total = list(items)[:SHOWN], sum(items.values())
        if total > len(named):
            named.append(f"and {total - len(named)} more")
        what = f"{reason}: {counted(total, 'caption')}" if isinstance(reason, Told) else f"left out {total}: {reason}"
        said.append(f"{what} ({'; '.join(named)})")
    return said
