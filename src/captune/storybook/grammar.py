"""The grammar of the reference captions: what a careful person writes under a storybook image.

Every thing is named; sizes, sub-kinds and the background are left out now and then, the order, the opening and the
words for a relation vary. `captune.storybook.parser` reads back exactly the facts that a caption states.
"""

from __future__ import annotations

import random

from captune.storybook.world import INVERSE, Scene, Thing, relations

PLACE = {
    "beach": "on the beach",
    "meadow": "in the meadow",
    "desert": "in the desert",
    "city": "in the city",
    "snow": "in the snow",
    "lake": "by the lake",
    "mountains": "in the mountains",
}
WORDING = {
    "left of": ("left of",),
    "right of": ("right of",),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
SYNONYM_PROBABILITY = 0.15
SIZE_PROBABILITY = 0.75
SUBKIND_PROBABILITY = 0.9
CANONICAL_ORDER_PROBABILITY = 0.8
RELATIONS = {1: 0, 2: 1, 3: 2, 4: 2}  # how many relations `body` states of a scene with so many things
HORIZONTAL_PROBABILITY = 0.85  # on a diagonal, where two relations hold
# (form, probability): {body} is the things and their relations, {place} the background
FORMS = (
    ("{body} {place}", 0.62),
    ("there is {body} {place}", 0.14),
    ("{place} there is {body}", 0.1),
    ("{body}", 0.14),
)


def article(words: str) -> str:
    """Put the indefinite article before the words."""
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"


def noun_phrase(kind: str, *, size: str | None, colour: str | None, subkind: str | None) -> str:
    """Return "a big red striped fish"; None leaves a word out."""
    return article(" ".join(word for word in (size, colour, subkind, kind) if word))


def relation_words(relation: str, rng: random.Random) -> str:
    """Return the words for a relation, sometimes a synonym."""
    first, *others = WORDING[relation]
    return others[0] if others and rng.random() < SYNONYM_PROBABILITY else first


def describe(thing: Thing, rng: random.Random) -> str:
    """Return the noun phrase of a thing, at times without its size or sub-kind."""
    return noun_phrase(
        thing.kind,
        size=thing.size if rng.random() < SIZE_PROBABILITY else None,
        colour=thing.colour,
        subkind=thing.subkind if rng.random() < SUBKIND_PROBABILITY else None,
    )


def state_relation(a: Thing, b: Thing, rng: random.Random) -> str:
    """The words between a and b: a relation that holds, the horizontal one most of the time."""
    held = relations(a, b)
    chosen = held[0] if len(held) == 1 or rng.random() < HORIZONTAL_PROBABILITY else held[1]
    return relation_words(chosen, rng)


def salience(thing: Thing) -> tuple[bool, bool, bool]:
    """Big things first, then in reading order."""
    return (thing.size != "big", thing.y > 0.5, thing.x > 0.5)


def body(scene: Scene, rng: random.Random) -> str:
    """Return the things of a scene and their relations in words."""
    things = sorted(scene.things, key=salience)
    if len(things) >= 2 and rng.random() > CANONICAL_ORDER_PROBABILITY:
        things[0], things[1] = things[1], things[0]
    said = [describe(thing, rng) for thing in things]
    if len(things) == 1:
        return said[0]
    text = f"{said[0]} {state_relation(things[0], things[1], rng)} {said[1]}"
    if len(things) == 3:
        anchor = things[rng.randrange(2)]
        text += f" and {said[2]} {state_relation(things[2], anchor, rng)} the {anchor.kind}"
    elif len(things) == 4:
        text += f" and {said[2]} {state_relation(things[2], things[3], rng)} {said[3]}"
    return text


def fill(form: str, text: str, place: str) -> str:
    """Fill a form of a caption."""
    return form.format(body=text, place=place)


def choose_form(rng: random.Random) -> str:
    """Sample a form of a caption."""
    return rng.choices([form for form, _ in FORMS], weights=[p for _, p in FORMS])[0]


def reference(scene: Scene, rng: random.Random) -> str:
    """Return one true caption of the scene."""
    return fill(choose_form(rng), body(scene, rng), PLACE[scene.background])


def references(scene: Scene, rng: random.Random, n: int = 5) -> list[str]:
    """`n` captions of the scene, each true."""
    return [reference(scene, rng) for _ in range(n)]


__all__ = ["INVERSE", "PLACE", "WORDING", "article", "noun_phrase", "reference", "references"]
