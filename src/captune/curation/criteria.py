"""What a step may judge by, checked without building anything: a scorer, a sum of scorers, or a column of the set."""

from __future__ import annotations

from captune.errors import UsageError
from captune.scorers.registry import check_higher_is_better, known

COLUMN = "column:"
RESERVED = frozenset(
    {"image", "image_id", "references", "caption", "scene", "row", "number", "entry", "text"}
    | {"verdict", "reason", "other", "before", "after", "moved_to"}
)


def check_by(by: str) -> None:
    """Check a criterion without building anything.

    Raises:
        UsageError: the scorer is not known, or the expression cannot be read.
    """
    if not by.strip():
        raise UsageError("by is empty: name a scorer, such as clip")
    if not by.startswith(COLUMN):
        known(by)


def check_column(name: str) -> None:
    """Refuse a name for a column that the set or its record has for something else.

    Raises:
        UsageError: for such a name, or none.
    """
    if not name.strip() or name in RESERVED:
        raise UsageError(f"column cannot be called {name!r}: the set has {', '.join(sorted(RESERVED))} for itself")


def check_direction(by: str, what: str) -> None:
    """Refuse to rank by a scorer of which less is better; which way a column is better nobody declares."""
    if not by.startswith(COLUMN):
        check_higher_is_better(by, what)
