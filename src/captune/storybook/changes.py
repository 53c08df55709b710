"""Captions with exactly one fact changed; the facts of captions and scenes as vectors, to check truth in batches.

>>> changed("a red fish left of a blue cup on the beach", "binding", random.Random(0))
'a blue fish left of a red cup on the beach'
"""

from __future__ import annotations

import random
import re

import numpy as np

from captune.storybook.grammar import PLACE, article
from captune.storybook.parser import SUBKINDS, parse, read
from captune.storybook.world import BACKGROUNDS, COLOURS, KIND_NAMES, KINDS, RELATIONS, SIZES, Scene

# "binding" swaps the colours of two things; "colour" brings in one that the scene lacks.
CHANGES = ("kind", "colour", "binding", "subkind", "relation", "size", "background")
OPPOSITE = {"left": "right", "above": "below", "over": "under", "big": "small"}
OPPOSITE |= {b: a for a, b in OPPOSITE.items()}
RELATION_WORDS = ("left", "right", "above", "below", "over", "under")

SUBKIND_NAMES = tuple(sorted(SUBKINDS))

_OBJECTS = [("object", (kind,)) for kind in KIND_NAMES]
_COLOURS = [("attribute", (kind, colour)) for kind in KIND_NAMES for colour in COLOURS]
_SIZES = [("size", (kind, size)) for kind in KIND_NAMES for size in SIZES]
_SUBKINDS = [("subkind", (kind, subkind)) for kind in KIND_NAMES for subkind in KINDS[kind]]
_PLACES = [("background", (background,)) for background in BACKGROUNDS]
_COLUMNS = [("column", (kind, half)) for kind in KIND_NAMES for half in ("left", "right")]
_ROWS = [("row", (kind, half)) for kind in KIND_NAMES for half in ("top", "bottom")]
FACTS = {fact: i for i, fact in enumerate((*_OBJECTS, *_COLOURS, *_SIZES, *_SUBKINDS, *_PLACES, *_COLUMNS, *_ROWS))}
OBJECTS = len(_OBJECTS)  # the facts before this one say what is there
NEVER = len(FACTS)  # the place of facts that no scene can have
# Things stand in a 2 x 2 grid, so "a left of b" is the same as "a is in the left half and b in the right half".
HALVES = {
    "left of": ("column", "left", "right"),
    "right of": ("column", "right", "left"),
    "above": ("row", "top", "bottom"),
    "below": ("row", "bottom", "top"),
}


def changed(caption: str, what: str, rng: random.Random) -> str | None:
    """The caption with one fact of the sort `what` (one of `CHANGES`) changed; None where it states no such fact.

    The result is false of every scene of which the caption names all the things.
    """
    words = caption.split()
    if what == "background":
        return _other_place(caption, rng)
    wanted = {
        "kind": KIND_NAMES,
        "colour": COLOURS,
        "binding": COLOURS,
        "subkind": tuple(s for subkinds in KINDS.values() for s in subkinds),
        "relation": RELATION_WORDS,
        "size": SIZES,
    }[what]
    at = [i for i, word in enumerate(words) if word in wanted]
    if not at:
        return None
    i = rng.choice(at)
    if what == "kind":
        words = _other_kind(words, i, rng)
    elif what == "colour":
        words[i] = rng.choice([colour for colour in COLOURS if colour not in words])
    elif what == "binding":
        others = [j for j in at if words[j] != words[i]]
        if not others:
            return None
        j = rng.choice(others)
        words[i], words[j] = words[j], words[i]
    elif what == "subkind":
        words[i] = rng.choice([s for s in KINDS[words[i + 1]] if s != words[i]])
    else:
        words[i] = OPPOSITE[words[i]]
    return _articles(" ".join(words))


def _articles(text: str) -> str:
    return re.sub(r"\ban? (\w+)", lambda m: article(m[1]), text)


def _other_kind(words: list[str], i: int, rng: random.Random) -> list[str]:
    """Every mention of the kind at `i` becomes another kind's, its sub-kind one that the other kind has."""
    old, new = words[i], rng.choice([kind for kind in KIND_NAMES if kind not in words])
    result = []
    for word, after in zip(words, [*words[1:], ""], strict=True):
        if after == old and word in KINDS[old]:
            result += [rng.choice(KINDS[new])] if KINDS[new] else []
        else:
            result.append(new if word == old else word)
    return result


def _other_place(caption: str, rng: random.Random) -> str | None:
    for background, place in PLACE.items():
        if place in caption:
            return caption.replace(place, rng.choice([PLACE[other] for other in BACKGROUNDS if other != background]))
    return None


def fact_vector(caption: str) -> np.ndarray:
    """(F + 1,) float32: 1 at every fact that the caption states; one that states nothing states something untrue."""
    vector = np.zeros(NEVER + 1, dtype=np.float32)
    stated: list[tuple[str, tuple[str, ...]]] = []
    for fact in parse(caption):
        if fact.type == "relation":
            a, relation, b = fact.value
            axis, half_of_a, half_of_b = HALVES[relation]
            stated += [(axis, (a, half_of_a)), (axis, (b, half_of_b))]
        else:
            stated.append((fact.type, fact.value))
    for key in stated or [("nothing", ())]:
        vector[FACTS.get(key, NEVER)] = 1
    return vector


def scene_vector(scene: Scene) -> np.ndarray:
    """(F + 1,) float32: 1 at every fact that is true of the scene."""
    facts: list[tuple[str, tuple[str, ...]]] = [("background", (scene.background,))]
    for a in scene.things:
        facts += [("object", (a.kind,)), ("attribute", (a.kind, a.colour)), ("size", (a.kind, a.size))]
        facts += [("subkind", (a.kind, a.subkind))] if a.subkind else []
        facts.append(("column", (a.kind, "left" if a.x < 0.5 else "right")))
        facts.append(("row", (a.kind, "top" if a.y < 0.5 else "bottom")))
    vector = np.zeros(NEVER + 1, dtype=np.float32)
    vector[[FACTS[fact] for fact in facts]] = 1
    return vector


# What stage 2 of the build asks at each noun of a text: (question, number of answers), 0 is "not mentioned".
NOUN_QUESTIONS = (
    ("colour", 1 + len(COLOURS)),
    ("size", 1 + len(SIZES)),
    ("subkind", 1 + len(SUBKIND_NAMES)),
    ("relation to the thing named before", 1 + len(RELATIONS)),
    ("thing named before", 1 + len(KIND_NAMES)),
)


def noun_answers(caption: str) -> list[tuple[int, list[int]]]:
    """For each noun: the place of its last character and the answers to `NOUN_QUESTIONS`."""
    mentions = read(caption)[1]
    said = {fact.start: fact.value for fact in parse(caption) if fact.type == "relation"}
    result = []
    for before, mention in zip([None, *mentions], mentions, strict=False):
        answers = [0] * len(NOUN_QUESTIONS)
        for word, _, _ in mention.modifiers:
            for question, names in enumerate((COLOURS, SIZES, SUBKIND_NAMES)):
                if word in names:
                    answers[question] = 1 + names.index(word)
        for start, (kind, relation, _) in said.items():
            if before is not None and before.end <= start < mention.start:
                answers[3:] = [1 + RELATIONS.index(relation), 1 + KIND_NAMES.index(kind)]
        result.append((mention.end - 1, answers))
    return result


def alternatives() -> np.ndarray:
    """(F + 1, G) float32: 1 where a fact is in a group of which at most one is true: the colours of the fish."""
    groups = [(kind, *value[:-1]) for kind, value in FACTS]  # all that a fact says but for its last word
    numbers = {group: i for i, group in enumerate(dict.fromkeys([*groups, ("never",)]))}
    return np.eye(len(numbers), dtype=np.float32)[[numbers[group] for group in [*groups, ("never",)]]]


def true_of(captions: np.ndarray, scenes: np.ndarray) -> np.ndarray:
    """(T, B) bool from (T, F + 1) and (B, F + 1): whether every fact of caption t is true of scene b."""
    return captions @ scenes.T == captions.sum(axis=1, keepdims=True)


__all__ = [
    "CHANGES",
    "NOUN_QUESTIONS",
    "alternatives",
    "changed",
    "fact_vector",
    "noun_answers",
    "scene_vector",
    "true_of",
]
