"""What a caption states, in its smallest parts: read by a source's own program, or split off by a language model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from captune.data.schemes import SOURCES, Scheme, Statement
from captune.errors import ScorerError
from captune.models.answerers import Answerer, Prompt, ask_json, one_line

EXACT = "storybook"
EXACT_OR_MODEL = (
    "a source whose own program judges exactly, or the language model that answers: a folder, a hub name, or a server"
)
_SENTENCE = re.compile(r"(?:[^.!?;\n]|[.!?;](?!\s|$))+")  # a full stop inside 3.5 ends none
UNITS = """\
Split a description of an image into its smallest facts: short statements that each say one thing and can be understood
alone. Leave nothing out. Where several things are alike, number them (cat 1, cat 2) and name them so in every fact.
A fact is descriptive if it says what can be seen, and not descriptive if it is a guess, a mood, praise or rhetoric.
Description: "{text}"
Answer with JSON alone, a list of this form:
[{{"fact": "there is a zeppelin", "descriptive": true}}, {{"fact": "the zeppelin is proud", "descriptive": false}}]"""
EXAMPLE = "zeppelin"  # weak models repeat the example instead of an answer


@dataclass(frozen=True)
class Unit:
    """A smallest statement of a text.

    Attributes:
        text: in words.
        descriptive: whether it says what can be seen.
        true: whether it is true, where an exact program says so.
        key: equal for equal statements, where an exact program says so.
    """

    text: str
    descriptive: bool = True
    true: bool = False
    key: Any = None


def exact_program(name: str) -> Scheme | None:
    """Return the source whose own program a name in a model's slot stands for; None for a model."""
    if name not in SOURCES:
        return None
    scheme: Scheme = SOURCES[name]
    return scheme if scheme.truth_column else None


def exact_units(scheme: Scheme, caption: str, truth: str) -> list[Unit]:
    """Return what a caption states by a source's own program.

    A sentence in which the program reads nothing is one unit that is not descriptive, and not true.
    """
    statements = scheme.statements(caption, truth)
    unread = [
        match.group().strip()
        for match in _SENTENCE.finditer(caption)
        if re.search(r"\w", match.group()) and not any(match.start() <= s.start < match.end() for s in statements)
    ]
    return [*map(unit_of, statements), *(Unit(text, descriptive=False) for text in unread)]


def unit_of(statement: Statement) -> Unit:
    """Return a statement as a unit."""
    return Unit(statement.text, True, statement.true, statement.key)


def asked_units(
    answerer: Answerer, texts: Sequence[str], about: Sequence[str], kept: dict[str, list[Unit]] | None = None
) -> list[list[Unit]]:
    """Return what texts state, as a language model splits them; equal texts are split once, a blank one says nothing.

    Args:
        answerer: the language model.
        texts: captions or references.
        about: what errors call each.
        kept: what was split before, to which these are added: a reward meets the same references again and again.

    Raises:
        ScorerError: the model gave no list of statements; names what `about` says.
    """
    kept = {} if kept is None else kept
    said = {one_line(text): what for text, what in zip(texts, about, strict=True) if re.search(r"\w", text)}
    said = {text: what for text, what in said.items() if text not in kept}
    prompts = [Prompt(UNITS.format(text=text), about=what) for text, what in said.items()]
    found = ask_json(answerer, prompts, [partial(_read_units, text) for text in said], max_new_tokens=2000)
    kept.update(zip(said, found, strict=True))
    return [kept.get(one_line(text), []) for text in texts]


def _read_units(split: str, value: Any) -> list[Unit]:
    if not isinstance(value, list) or not value:
        raise ValueError("it is not a list with a fact in it")
    units = []
    for entry in value:
        text = entry.get("fact") if isinstance(entry, dict) else None
        descriptive = entry.get("descriptive") if isinstance(entry, dict) else None
        if not isinstance(text, str) or not text.strip() or not isinstance(descriptive, bool):
            raise ValueError('an entry is not of the form {"fact": "...", "descriptive": true}')
        if EXAMPLE in text.lower() and EXAMPLE not in split.lower():
            raise ValueError("it repeats the example")
        units.append(Unit(one_line(text), descriptive))
    return units


def the_reference(name: str, references: Sequence[str], number: int | None, about: str) -> str:
    """Return all references of an image, a line each, or the one with a number.

    Raises:
        ScorerError: there are not that many; names what `about` says.
    """
    texts = [one_line(text) for text in references]
    if not texts or (number is not None and number >= len(texts)):
        raise ScorerError(
            f"scorer {name!r}: {about} has {len(texts)} references, and number {number or 0} is asked for"
        )
    return "\n".join(texts) if number is None else texts[number]


def named(caption: str) -> str:
    """Return what messages call a caption."""
    return f"caption {caption[:60]!r}"
