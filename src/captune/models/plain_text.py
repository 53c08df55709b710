"""Texts of others in a prompt: a caption holds no image, and ends no turn. Answers without the thought before them."""

from __future__ import annotations

from functools import lru_cache
from typing import Any


def plain(tokenizer: Any, text: str) -> str:
    """Return a text with a space for each special token that the tokenizer would read in it."""
    for special in _specials(tokenizer, len(tokenizer)):
        text = text.replace(special, " ")
    return text


def without_thought(reply: str) -> str:
    """Return what a reasoning model says after its thought, which `</think>` ends; other replies as they are.

    Raises:
        ValueError: the reply was cut off within a thought.
    """
    said = reply.rpartition("</think>")[2]
    if said.lstrip().startswith("<think>"):
        raise ValueError("the answer was cut off within a thought")
    return said


@lru_cache(maxsize=4)
def _specials(tokenizer: Any, size: int) -> list[str]:
    """The special tokens, the longest first; `size` is another when tokens are added."""
    added = {token for token in tokenizer.get_added_vocab() if token.startswith("<")}
    return sorted(added | set(tokenizer.all_special_tokens), key=len, reverse=True)
