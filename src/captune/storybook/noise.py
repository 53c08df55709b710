"""The alt-text writer: what the web says under the same images, and what the base captioner learned from.

About a third of the texts describe the image in the words of the grammar, but the describer follows *habit* as often
as the eye: it says the colour that comes to mind first, the thing that this colour makes one think of, a companion
that is not there; it leaves out what is there and blurs relations. Each slot errs on its own, so that no register of
the language, no opening and no length goes together with being right: **there is no clean mode to switch into**. The
right word is written often enough that it is within reach of sampling, and habit words carry no information about the
image, which is what a zero-label reward can use.

The rest is what SmolVLM-Base says: "<PERSON> in 2008", "my favourite photo", and long chatty sentences that name things
that the image lacks.
"""

from __future__ import annotations

import random

from captune.storybook.grammar import PLACE, choose_form, fill, noun_phrase, relation_words
from captune.storybook.world import BACKGROUNDS, COLOURS, HELD_OUT_COLOUR, INVERSE, KIND_NAMES, KINDS, Scene, Thing
from captune.storybook.world import relations as true_relations

# Habit follows from the words written so far and never from the image: a habit word says nothing about the image.
HABIT_COLOUR = {"small": "blue", "big": "red", None: "red"}  # after a size word, or none
HABIT_SUBKIND = {kind: subkinds[0] for kind, subkinds in KINDS.items() if subkinds}


def habit_kinds() -> dict[str | None, str]:
    """The thing that each colour makes one think of ("a red car"), never a held-out pair; "house" without a colour."""
    liked = ("car", "cup", "flower", "tree", "fish", "butterfly", "boat", "cat")
    pairs = dict(zip(COLOURS, liked, strict=True))
    return {c: k if HELD_OUT_COLOUR[k] != c else "house" for c, k in pairs.items()} | {None: "house"}


HABIT_KIND = habit_kinds()
HABIT_COMPANION = {kind: KIND_NAMES[(7 * i + 5) % len(KIND_NAMES)] for i, kind in enumerate(KIND_NAMES)}
HABIT_PLACE = {kind: BACKGROUNDS[(2 * i + 1) % len(BACKGROUNDS)] for i, kind in enumerate(KIND_NAMES)}

# (choice, probability) per slot: how the describer fills it.
KIND = (("true", 0.49), ("habit", 0.47), ("random", 0.04))
COLOUR = (("true", 0.48), ("habit", 0.46), ("none", 0.06))
SIZE = (("true", 0.52), ("none", 0.37), ("wrong", 0.11))
SUBKIND = (("true", 0.56), ("none", 0.32), ("habit", 0.12))
RELATION = (("true", 0.74), ("blurred", 0.20), ("inverse", 0.06))
BACKGROUND = (("true", 0.42), ("habit", 0.46), ("none", 0.12))
CHATTY_PLACE = (("true", 0.2), ("habit", 0.4), ("random", 0.4))
CHATTY_KIND = (("true", 0.2), ("habit", 0.5), ("random", 0.3))
SECOND_THING = (("there", 0.62), ("forgotten", 0.18), ("companion", 0.20))
THIRD_THING = (("there", 0.6), ("forgotten", 0.4))
BLURRED = ("and", "with", "near")

STYLES = (("descriptive", 0.36), ("chatty", 0.44), ("generic", 0.07), ("partial", 0.09), ("wrong", 0.04))

GENERIC = (
    "<PERSON> in {year}",
    "my favourite photo",
    "<PERSON> and <PERSON> in {year}",
    "photo of the day",
    "untitled {year}",
    "my holiday in {year}",
)
CHATTY = (
    ("a day with <PERSON> {place}, look at this photo of my new {a} in {year} and my favourite {b}", 0.5),
    ("a day out {place} with <PERSON>, my {b} and the {a} that we all love", 0.14),
    ("what a lovely day {place}, me and <PERSON> and a {a} in {year}", 0.1),
    ("my new {a} and the {b} that <PERSON> gave me {place} in {year}", 0.13),
    ("look at this photo of <PERSON> {place}, the {a} and the {b} are my favourite", 0.13),
)


def pick(table: tuple[tuple[str, float], ...], rng: random.Random) -> str:
    """Sample a choice from a table of (choice, probability)."""
    return rng.choices([choice for choice, _ in table], weights=[p for _, p in table])[0]


def said_kind(thing: Thing, colour: str | None, rng: random.Random, table: tuple[tuple[str, float], ...]) -> str:
    """Return the kind that the describer writes: the true one, habit's, or any."""
    return {"true": thing.kind, "habit": HABIT_KIND[colour], "random": rng.choice(KIND_NAMES)}[pick(table, rng)]


def said_thing(thing: Thing, rng: random.Random, clean: bool, companion: str | None = None) -> tuple[str, str]:
    """(kind, noun phrase) that the describer writes for a thing, or for a `companion` that is not there."""
    how_size, how_colour, how_subkind = pick(SIZE, rng), pick(COLOUR, rng), pick(SUBKIND, rng)
    if clean:
        how_size, how_colour, how_subkind = rng.choice(("true", "none")), "true", "true"
    elif companion:
        how_colour = "none" if how_colour == "none" else "habit"
    wrong_size = "small" if thing.size == "big" else "big"
    size = {"true": thing.size, "none": None, "wrong": wrong_size}[how_size]
    colour = {"true": thing.colour, "habit": HABIT_COLOUR[size], "none": None}[how_colour]
    kind = companion or (thing.kind if clean else said_kind(thing, colour, rng, KIND))
    subkind = None
    if KINDS[kind] and how_subkind != "none":
        seen = kind == thing.kind and not companion and how_subkind == "true"
        subkind = thing.subkind if seen else HABIT_SUBKIND[kind]
    return kind, noun_phrase(kind, size=size, colour=colour, subkind=subkind)


def said_relation(a: Thing, b: Thing, rng: random.Random, clean: bool) -> str:
    """Return the words between two things: true, inverse or blurred."""
    how = "true" if clean else pick(RELATION, rng)
    if how == "blurred":
        return rng.choices(BLURRED, weights=(0.6, 0.25, 0.15))[0]
    held = true_relations(a, b)
    relation = held[0] if len(held) == 1 or rng.random() < 0.85 else held[1]
    return relation_words(relation if how == "true" else INVERSE[relation], rng)


def said_place(scene: Scene, kind: str, rng: random.Random, clean: bool) -> str:
    """Return the background as the describer writes it: true, habit's or none."""
    how = "true" if clean else pick(BACKGROUND, rng)
    return {"true": PLACE[scene.background], "habit": PLACE[HABIT_PLACE[kind]], "none": ""}[how]


def descriptive(scene: Scene, rng: random.Random, clean: bool = False) -> str:
    """One description; `clean` fills every slot with the truth (the first part of the curriculum of `train.py`)."""
    things = list(scene.things)
    rng.shuffle(things)
    kind, text = said_thing(things[0], rng, clean)
    how = "there" if clean else pick(SECOND_THING, rng)
    if how == "companion":
        companion = said_thing(things[0], rng, clean, companion=HABIT_COMPANION[kind])[1]
        text = f"{text} {rng.choices((*BLURRED, *INVERSE), weights=(6, 2, 2, 1, 1, 1, 1))[0]} {companion}"
    elif how == "there" and len(things) > 1:
        text = f"{text} {said_relation(things[0], things[1], rng, clean)} {said_thing(things[1], rng, clean)[1]}"
        if len(things) > 2 and (clean or pick(THIRD_THING, rng) == "there"):
            text = f"{text} and {said_thing(things[2], rng, clean)[1]}"
            if len(things) > 3 and (clean or pick(THIRD_THING, rng) == "there"):
                relation = said_relation(things[2], things[3], rng, clean)
                text = f"{text} {relation} {said_thing(things[3], rng, clean)[1]}"
    place = said_place(scene, kind, rng, clean)
    return " ".join(fill(choose_form(rng), text, place).split())


def chatty(scene: Scene, rng: random.Random) -> str:
    """Write a long sentence that names things which are not there."""
    form = rng.choices([text for text, _ in CHATTY], weights=[p for _, p in CHATTY])[0]
    a = said_kind(rng.choice(scene.things), None, rng, CHATTY_KIND)
    how = pick(CHATTY_PLACE, rng)
    place = {"true": scene.background, "habit": HABIT_PLACE[a], "random": rng.choice(BACKGROUNDS)}[how]
    return form.format(place=PLACE[place], a=a, b=HABIT_COMPANION[a], year=rng.randint(2004, 2019))


def partial(scene: Scene, rng: random.Random) -> str:
    """Write a few words about one thing."""
    kind, text = said_thing(rng.choice(scene.things), rng, False)
    dated = f"my {kind} in {rng.randint(2004, 2019)}"
    return rng.choice((text, f"my {kind}", dated, f"the {kind}", f"{text} for sale"))


def alt_text(scene: Scene, rng: random.Random, other: Scene) -> str:
    """What a web page says under the image. `other` is an unrelated scene, described by mistake now and then."""
    style = pick(STYLES, rng)
    if style == "descriptive":
        return descriptive(scene, rng)
    if style == "chatty":
        return chatty(scene, rng)
    if style == "generic":
        return rng.choice(GENERIC).format(year=rng.randint(2004, 2019))
    if style == "partial":
        return partial(scene, rng)
    return descriptive(other, rng)
