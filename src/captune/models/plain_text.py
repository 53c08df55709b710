"""Texts of others in a prompt: a caption holds no image, and ends no turn."""

from __future__ import annotations

from typing import Any


def plain(tokenizer: Any, text: str) -> str:
    """Return a text with a space for each special token that the tokenizer would read in it."""
    added = {token for token in tokenizer.get_added_vocab() if token.startswith("<")}
    for special in sorted(added | set(tokenizer.all_special_tokens), key=len, reverse=True):
        text = text.replace(special, " ")
    return text
