"""How messages to people say a number of things."""

from __future__ import annotations


def counted(count: int, noun: str, nouns: str = "") -> str:
    """Return a number with its noun: "1 image", "2,000 images".

    Args:
        count: how many.
        noun: one of them.
        nouns: several of them; default: `noun` with an s.
    """
    return f"{count:,} {noun if count == 1 else nouns or noun + 's'}"
