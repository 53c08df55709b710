"""Multiple-choice questions about a scene, whose answers the scene decides.

Asked of each scene: its background (7 options); whether a thing is there (yes or no: yes for every kind that is, no for
one that is not) and which of four kinds is; how many things there are; of each thing its colour, size and sub-kind; and
of each pair one relation. Two things that only one relation holds between are asked about with all four; on a diagonal,
where two hold, the question is about one axis, the horizontal one as often as captions state it.

Wrong options are, with `hard`, what is true of the scene's other things first (a caption that gives the car the tree's
colour then answers wrong, instead of having no option), and then other values; else only values that are nowhere in
the scene, as far as there are enough.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

from captune.data.questions import MultipleChoice
from captune.storybook.grammar import HORIZONTAL_PROBABILITY
from captune.storybook.world import BACKGROUNDS, COLOURS, KIND_NAMES, KINDS, RELATIONS, SIZES, Scene, Thing, relations

OPTIONS = 4  # where there are more values than these
SUBKINDS = tuple(dict.fromkeys(subkind for subkinds in KINDS.values() for subkind in subkinds))
AXES = {"horizontal": RELATIONS[:2], "vertical": RELATIONS[2:]}


def questions(scene: Scene, *, hard: bool = True, seed: int = 0) -> list[MultipleChoice]:
    """Return every question about the scene; equal facts and seeds give equal questions.

    Args:
        scene: the scene.
        hard: whether wrong options are taken from the scene's other things first.
        seed: of the choice and the order of the options.
    """
    rng = random.Random(f"questions/{seed}/{hard}/{scene.key()}")
    things = sorted(scene.things, key=lambda thing: KIND_NAMES.index(thing.kind))
    absent = [kind for kind in KIND_NAMES if scene.thing(kind) is None]
    missing, one = rng.choice(absent), rng.choice(things)

    def ask(category: str, text: str, options: Sequence[str], key: str, *slot: str) -> MultipleChoice:
        options = list(options)
        if options != ["yes", "no"] and category != "count":
            rng.shuffle(options)
        return MultipleChoice(text, tuple(options), options.index(key), category, slot)

    def among(key: str, others: Iterable[str], values: Sequence[str], first: Sequence[str] = ()) -> list[str]:
        """The key and three wrong values, those of the scene's `others` first, or last."""
        rest = [value for value in rng.sample(values, len(values)) if value not in others]
        own = [value for value in dict.fromkeys(others) if value in values]
        return list(dict.fromkeys([key, *first, *([*own, *rest] if hard else [*rest, *own])]))[:OPTIONS]

    asked = [ask("background", "Where is the scene set?", BACKGROUNDS, scene.background, "background")]
    for kind in [*(thing.kind for thing in things), missing]:
        key = "no" if kind == missing else "yes"
        asked.append(ask("presence", f"Is there {_a(kind)}?", ("yes", "no"), key, "presence", kind))
    which = [one.kind, *rng.sample(absent, OPTIONS - 1)]
    asked.append(ask("presence", "Which of these is there?", which, one.kind, "which"))
    asked.append(ask("count", "How many things are there?", "1234", str(len(things)), "count"))
    for thing in things:
        rest = [other for other in things if other is not thing]
        colours = among(thing.colour, [other.colour for other in rest], COLOURS)
        asked.append(ask("colour", f"What colour is the {thing.kind}?", colours, thing.colour, "attribute", thing.kind))
        asked.append(ask("size", f"How big is the {thing.kind}?", SIZES, thing.size, "size", thing.kind))
        if thing.subkind:
            theirs = [other.subkind for other in rest if other.subkind]
            siblings = [subkind for subkind in KINDS[thing.kind] if subkind != thing.subkind]
            options = among(thing.subkind, theirs, SUBKINDS, siblings)
            text = f"What kind of {thing.kind} is it?"
            asked.append(ask("sub-kind", text, options, thing.subkind, "subkind", thing.kind))
    for i, a in enumerate(things):
        for b in things[i + 1 :]:
            text, sides, key, *slot = _relation(*((a, b) if rng.random() < 0.5 else (b, a)), rng)
            asked.append(ask("relation", text, sides, key, "relation", *slot))
    return asked


def _relation(a: Thing, b: Thing, rng: random.Random) -> tuple[str, Sequence[str], str, str, str]:
    """The question about two things, its options, its key, and the two kinds."""
    held = relations(a, b)
    if len(held) == 1:
        return f"Where is the {a.kind}, seen from the {b.kind}?", RELATIONS, held[0], a.kind, b.kind
    options = AXES["horizontal" if rng.random() < HORIZONTAL_PROBABILITY else "vertical"]
    key = next(relation for relation in held if relation in options)
    return f"Is the {a.kind} {options[0]} or {options[1]} the {b.kind}?", options, key, a.kind, b.kind


def _a(kind: str) -> str:
    return f"an {kind}" if kind[0] in "aeiou" else f"a {kind}"
