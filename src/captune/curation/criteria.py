"""What a step may judge by, checked without building anything: a scorer, a sum of scorers, or a column of the set."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from captune.data.schemes import blind
from captune.errors import UsageError
from captune.scorers.expression import is_expression
from captune.scorers.registry import direction, known

if TYPE_CHECKING:
    from captune.curation.base import Captions

logger = logging.getLogger(__name__)
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


def say_blind(what: str, signature: str, captions: Captions) -> None:
    """Warn where something looks at images through a model that has seen others alone."""
    if said := blind(what, signature, captions.source, captions.images.column_names):
        logger.warning(said)


def check_column(name: str) -> None:
    """Refuse a name for a column that the set or its record has for something else.

    Raises:
        UsageError: for such a name, or none.
    """
    if not name.strip() or name in RESERVED:
        raise UsageError(f"column cannot be called {name!r}: the set has {', '.join(sorted(RESERVED))} for itself")


def check_direction(by: str, what: str) -> None:
    """Refuse to rank by a scorer of which less is better; it is ranked by its negative."""
    if not by.startswith(COLUMN) and direction(by) is False:
        if is_expression(by):
            raise UsageError(f"{what} takes the highest, and less of {by!r} is better: turn its signs round")
        raise UsageError(f"{what} takes the highest, and less of {by!r} is better: write '-{by}'")
