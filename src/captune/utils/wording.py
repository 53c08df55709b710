"""How messages to people say a number of things."""

from __future__ import annotations

from collections.abc import Iterable


def span(numbers: Iterable[int]) -> str:
    """Return the least and the greatest of some numbers: "98 to 1,000", "100"; "" of no number."""
    known = sorted(set(numbers))
    return " to ".join(dict.fromkeys(f"{own:,}" for own in (known[0], known[-1]))) if known else ""


def counted(count: int, noun: str, nouns: str = "") -> str:
    """Return a number with its noun: "1 image", "2,000 images".

    Args:
        count: how many.
        noun: one of them.
        nouns: several of them; default: `noun` with an s.
    """
    return f"{count:,} {noun if count == 1 else nouns or noun + 's'}"
