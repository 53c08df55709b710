"""From a caption to the facts it states, and whether each is true of a scene.

The parser reads whatever a captioner says, word salad included: a fact is a noun phrase ("a big red striped fish"
states an object, a size, a colour and a sub-kind), a relation between two neighbouring noun phrases, or the name of a
background. Every word that states something is accounted for: a colour that stands beside no object is a fact about
nothing, and false; a second "a fish" where the scene has one is an object that is not there.

    >>> [(s.type, s.value) for s in parse("a red fish left of a cup")]
    [('object', ('fish',)), ('attribute', ('fish', 'red')), ('object', ('cup',)),
     ('relation', ('fish', 'left of', 'cup'))]
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

from captune.storybook.grammar import RELATIONS
from captune.storybook.world import BACKGROUNDS, COLOURS, INVERSE, KINDS, SIZES, Scene, relations

TYPES = ("object", "attribute", "size", "subkind", "relation", "background")
SUBKINDS = {subkind for subkinds in KINDS.values() for subkind in subkinds}
NOUN_SUBKINDS = {"pine": "tree", "palm": "tree", "tulip": "flower", "daisy": "flower"}  # may stand without their kind
PLURALS = {"fishes": "fish", "butterflies": "butterfly"} | {f"{k}s": k for k in KINDS if k not in ("fish", "butterfly")}
DETERMINERS = {"a", "an", "the", "my", "our", "this", "that"}
RELATION_PHRASES = {
    **{f"{side} of": f"{side} of" for side in ("left", "right")},
    **{f"{lead} the {side} of": f"{side} of" for side in ("left", "right") for lead in ("to", "on", "at")},
    **{f"{lead} {side} of": f"{side} of" for side in ("left", "right") for lead in ("to", "on", "at")},
    "above": "above",
    "over": "above",
    "below": "below",
    "under": "below",
    "beneath": "below",
}
FILLERS = re.compile(r"^(?:and|is|that is|which is|,)\s+")
WORD = re.compile(r"[A-Za-z]+")


@dataclass(frozen=True)
class Fact:
    """One stated fact: its type, its value and the characters that state it (`caption[start:end]`)."""

    type: str
    value: tuple[str, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Span:
    """A stated fact, judged: `kind` is the fact's type, `true` whether the scene bears it out."""

    start: int
    end: int
    kind: str
    true: bool


@dataclass(frozen=True)
class Mention:
    kind: str
    definite: bool
    modifiers: tuple[tuple[str, int, int], ...]  # (word, start, end)
    first_word: int  # index of the phrase's first word (its determiner included) and of its noun
    last_word: int
    start: int  # of the noun
    end: int


def read(caption: str) -> tuple[list[tuple[str, int, int]], list[Mention], list[Fact]]:
    """The words, the noun phrases, and the facts that stand outside noun phrases (backgrounds, stray modifiers)."""
    words = [(m.group().lower(), m.start(), m.end()) for m in WORD.finditer(caption)]  # lower() may change lengths
    mentions: list[Mention] = []
    stray: list[Fact] = []
    pending: list[tuple[str, int, int]] = []

    def mention(
        kind: str, index: int, modifiers: list[tuple[str, int, int]], start: int, end: int, words_before: int
    ) -> None:
        first = index - words_before
        definite = first > 0 and words[first - 1][0] == "the"
        first -= first > 0 and words[first - 1][0] in DETERMINERS
        mentions.append(Mention(kind, definite, tuple(modifiers), first, index, start, end))

    def flush(index: int) -> None:
        """The phrase ended at word `index` without its noun."""
        if pending and pending[-1][0] in NOUN_SUBKINDS:
            word, start, end = pending[-1]
            mention(NOUN_SUBKINDS[word], index, pending, start, end, len(pending) - 1)
        else:
            stray.extend(
                Fact("size" if w in SIZES else "attribute", ("", w), s, e) for w, s, e in pending if w not in SUBKINDS
            )
        pending.clear()

    for index, (word, start, end) in enumerate(words):
        kind = PLURALS.get(word, word)
        if word in COLOURS or word in SIZES or word in SUBKINDS:
            pending.append((word, start, end))
        elif kind in KINDS:
            mention(kind, index, pending, start, end, len(pending))
            pending.clear()
        else:
            flush(index - 1)
            if word in BACKGROUNDS or word == "mountain":
                stray.append(Fact("background", ("mountains" if word == "mountain" else word,), start, end))
    flush(len(words) - 1)
    return words, mentions, stray


def parse(caption: str) -> list[Fact]:
    """The facts that a caption states, each once, in reading order; a repeated "a fish" is a repeated object."""
    words, mentions, facts = read(caption)
    seen: Counter[str] = Counter()
    for i, m in enumerate(mentions):
        if not (m.definite and seen[m.kind]):
            facts.append(Fact("object", (m.kind,), m.start, m.end))
        seen[m.kind] += 1
        for word, start, end in m.modifiers:
            fact_type = "size" if word in SIZES else "subkind" if word in SUBKINDS else "attribute"
            facts.append(Fact(fact_type, (m.kind, word), start, end))
        if i + 1 < len(mentions):
            after = mentions[i + 1]
            between = words[m.last_word + 1 : after.first_word]
            phrase = FILLERS.sub("", " ".join(word for word, _, _ in between))
            if phrase in RELATION_PHRASES:
                value = (m.kind, RELATION_PHRASES[phrase], after.kind)
                facts.append(Fact("relation", value, between[0][1], between[-1][2]))
    unique: dict[tuple[object, ...], Fact] = {}
    for number, fact in enumerate(sorted(facts, key=lambda fact: (fact.start, TYPES.index(fact.type)))):
        # an object named twice is two objects; anything else stated twice counts once
        unique.setdefault((fact.type, canonical(fact.value), number if fact.type == "object" else 0), fact)
    return list(unique.values())


def canonical(value: tuple[str, ...]) -> tuple[str, ...]:
    """Each relation in one form: "b right of a" states what "a left of b" states."""
    if len(value) == 3 and value[1] in ("right of", "below"):
        return (value[2], INVERSE[value[1]], value[0])
    return value


def true_facts(scene: Scene) -> list[tuple[str, tuple[str, ...]]]:
    """Every true fact of a scene, (type, canonical value), each once; a relation of two things is one fact."""
    found: list[tuple[str, tuple[str, ...]]] = [("background", (scene.background,))]
    for thing in scene.things:
        found += [
            ("object", (thing.kind,)),
            ("attribute", (thing.kind, thing.colour)),
            ("size", (thing.kind, thing.size)),
        ]
        found += [("subkind", (thing.kind, thing.subkind))] if thing.subkind else []
        found += [
            ("relation", canonical((thing.kind, relation, other.kind)))
            for other in scene.things
            for relation in relations(thing, other)
        ]
    return list(dict.fromkeys(found))


def is_true(fact: Fact, scene: Scene) -> bool:
    """Whether the scene bears the fact out (an object: whether a thing of that kind is there)."""
    if fact.type == "background":
        return fact.value[0] == scene.background
    thing = scene.thing(fact.value[0])
    if thing is None:
        return False
    if fact.type == "relation":
        other = scene.thing(fact.value[2])
        return other is not None and other is not thing and fact.value[1] in relations(thing, other)
    if fact.type == "object":
        return True
    return fact.value[1] == {"attribute": thing.colour, "size": thing.size, "subkind": thing.subkind}[fact.type]


def judged(caption: str, scene: Scene) -> list[tuple[Fact, bool]]:
    """Every stated fact with its truth; of an object named twice, only the first can be true."""
    found: set[tuple[str, ...]] = set()
    result = []
    for fact in parse(caption):
        true = is_true(fact, scene) and not (fact.type == "object" and fact.value in found)
        if fact.type == "object":
            found.add(fact.value)
        result.append((fact, true))
    return result


def judge(caption: str, scene: Scene) -> list[Span]:
    """The spans of a caption that state something, each true or false of the scene."""
    return [Span(fact.start, fact.end, fact.type, true) for fact, true in judged(caption, scene)]


def truth_sizes(scene: Scene) -> dict[str, int]:
    """How many facts of each type a complete caption of the scene states; its relations are those of the grammar."""
    n = len(scene.things)
    subkinds = sum(thing.subkind is not None for thing in scene.things)
    return {"object": n, "attribute": n, "size": n, "subkind": subkinds, "relation": RELATIONS[n], "background": 1}


def count(caption: str, scene: Scene) -> dict[str, tuple[int, int, int, int]]:
    """Per fact type: (true facts stated, facts stated, true facts that count for recall, facts of the scene)."""
    facts = judged(caption, scene)
    result = {}
    for fact_type, size in truth_sizes(scene).items():
        verdicts = [true for fact, true in facts if fact.type == fact_type]
        result[fact_type] = (sum(verdicts), len(verdicts), min(sum(verdicts), size), size)
    return result


__all__ = ["Fact", "Span", "count", "is_true", "judge", "parse", "true_facts"]
