"""Answers in JSON: asked for, read strictly, asked for once more where they are not what was asked for."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from captune.errors import ScorerError
from captune.models.answerers.base import Answerer, Prompt
from captune.models.plain_text import without_thought
from captune.utils.files import parse_json

T = TypeVar("T")
_FENCED = re.compile(r"```[A-Za-z]*\s(.*?)```", re.DOTALL)
AGAIN = "\n\nYour last answer could not be used: {why}. Answer again, with the JSON alone."


def read_json(reply: str) -> Any:
    """Return what a reply says in JSON, which is all of it behind a thought, or its only fenced block there.

    Raises:
        ValueError: it is no JSON, has several fenced blocks, or was cut off within a thought.
    """
    reply = without_thought(reply)
    blocks = _FENCED.findall(reply)
    if len(blocks) > 1:
        raise ValueError(f"it has {len(blocks)} blocks of code")
    return parse_json(blocks[0] if blocks else reply, "the answer")


def ask_json(
    answerer: Answerer, prompts: Sequence[Prompt], readers: Sequence[Callable[[Any], T]], **settings: Any
) -> list[T]:
    """Ask for JSON; an answer that cannot be read is asked for once more, with the reason.

    Args:
        answerer: who answers.
        prompts: each says what JSON it asks for.
        readers: one for each prompt: returns what the JSON says, or raises ValueError with the reason.
        settings: of `Answerer.complete`.

    Raises:
        ScorerError: the second answer cannot be read either; names what it is about.
    """
    found: dict[int, T] = {}
    asked = dict(enumerate(prompts))
    for last in (False, True):
        replies = answerer.complete(list(asked.values()), **settings)
        again = {}
        for (i, prompt), reply in zip(asked.items(), replies, strict=True):
            try:
                found[i] = readers[i](read_json(reply))
            except ValueError as why:
                if last:
                    raise ScorerError(
                        f"{answerer.label} was asked twice about {prompt.about} and gave no answer that can be read: "
                        f"{why}; it said {reply[:80]!r}"
                    ) from why
                again[i] = replace(prompt, text=prompts[i].text + AGAIN.format(why=why))
        asked = again
        if not asked:
            break
    return [found[i] for i in range(len(prompts))]
