"""What a step may judge by, checked without building anything: a scorer, a sum of scorers, or a column of the set."""

from __future__ import annotations

from captune.errors import UsageError
from captune.scorers.expression import is_expression
from captune.scorers.registry import direction, known

COLUMN = "column:"


def check_by(by: str) -> None:
    """Check a criterion without building anything.

    Raises:
        UsageError: the scorer is not known, or the expression cannot be read.
    """
    if not by.strip():
        raise UsageError("by is empty: name a scorer, such as clip")
    if not by.startswith(COLUMN):
        known(by)


def check_direction(by: str, what: str) -> None:
    """Refuse to rank by a scorer of which less is better; it is ranked by its negative."""
    if not by.startswith(COLUMN) and direction(by) is False:
        if is_expression(by):
            raise UsageError(f"{what} takes the highest, and less of {by!r} is better: turn its signs round")
        raise UsageError(f"{what} takes the highest, and less of {by!r} is better: write '-{by}'")
