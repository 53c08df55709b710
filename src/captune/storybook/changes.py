"""Captions with exactly one fact changed, and the facts of captions and scenes as vectors, to tell truth in batches.

>>> changed("a red fish left of a blue cup on the beach", "binding", random.Random(0))
'a blue fish left of a red cup on the beach'
"""

from __future__ import annotations

import random
import re

import numpy as np

from captune.storybook.grammar import PLACE, article
from captune.storybook.parser import canonical, parse
from captune.storybook.world import BACKGROUNDS, COLOURS, KIND_NAMES, KINDS, SIZES, Scene, relations

# "binding" swaps the colours of two things; "colour" puts in one that is not there.
CHANGES = ("kind", "colour", "binding", "subkind", "relation", "size", "background")
OPPOSITE = {"left": "right", "above": "below", "over": "under", "big": "small"}
OPPOSITE |= {b: a for a, b in OPPOSITE.items()}
RELATION_WORDS = ("left", "right", "above", "below", "over", "under")

_OBJECTS = [("object", (kind,)) for kind in KIND_NAMES]
_COLOURS = [("attribute", (kind, colour)) for kind in KIND_NAMES for colour in COLOURS]
_SIZES = [("size", (kind, size)) for kind in KIND_NAMES for size in SIZES]
_SUBKINDS = [("subkind", (kind, subkind)) for kind in KIND_NAMES for subkind in KINDS[kind]]
_PLACES = [("background", (background,)) for background in BACKGROUNDS]
_RELATIONS = [("relation", (a, r, b)) for a in KIND_NAMES for b in KIND_NAMES if a != b for r in ("left of", "above")]
FACTS = {fact: i for i, fact in enumerate((*_OBJECTS, *_COLOURS, *_SIZES, *_SUBKINDS, *_PLACES, *_RELATIONS))}
NEVER = len(FACTS)  # the place of facts that no scene can have


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
    stated = [(fact.type, canonical(fact.value)) for fact in parse(caption)]
    for fact in stated or [("nothing", ())]:
        vector[FACTS.get(fact, NEVER)] = 1
    return vector


def scene_vector(scene: Scene) -> np.ndarray:
    """(F + 1,) float32: 1 at every fact that is true of the scene."""
    facts: list[tuple[str, tuple[str, ...]]] = [("background", (scene.background,))]
    for a in scene.things:
        facts += [("object", (a.kind,)), ("attribute", (a.kind, a.colour)), ("size", (a.kind, a.size))]
        facts += [("subkind", (a.kind, a.subkind))] if a.subkind else []
        facts += [
            ("relation", canonical((a.kind, r, b.kind))) for b in scene.things if b is not a for r in relations(a, b)
        ]
    vector = np.zeros(NEVER + 1, dtype=np.float32)
    vector[[FACTS[fact] for fact in facts]] = 1
    return vector


def true_of(captions: np.ndarray, scenes: np.ndarray) -> np.ndarray:
    """(T, B) bool from (T, F + 1) and (B, F + 1): whether every fact of caption t is true of scene b."""
    return captions @ scenes.T == captions.sum(axis=1, keepdims=True)


__all__ = ["CHANGES", "changed", "fact_vector", "scene_vector", "true_of"]
