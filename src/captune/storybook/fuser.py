"""Several texts about an image into one caption, by the grammar: the exact writer of `captune curate fuse`.

Each text is read by the parser, which fills slots: which kinds are there, the colour, size and sub-kind of each, how
two of them lie (left or right, above or below), and the background. Each text has one vote per slot.

    union      every kind that a text names; in a slot the value with the most votes, of equal ones the first said
    vote       what more than half say: kinds and the background of all texts, the other slots of those that fill them

So with two texts `vote` is what both say, and where they contradict one another the slot stays empty. Of more than four
kinds, which no scene has, those with the most votes stay. A relation is printed where the sentence has a place for it,
one per kind. What the parser does not read, such as a date or a name, is lost.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from captune.storybook.grammar import PLACE, noun_phrase
from captune.storybook.parser import canonical, parse

MOST = 4  # things in a scene
Slot = tuple[str, ...]  # what it is of; the type first


def fuse(texts: Sequence[str], keep: str) -> str:
    """Return one caption of what the texts say; "" where the parser reads nothing that is kept.

    Args:
        texts: the first has precedence among values with as many votes.
        keep: "union" or "vote", see the module.
    """
    read = [_slots(text) for text in texts]
    votes: dict[Slot, Counter[str]] = {}
    for own in read:
        for slot, value in own.items():
            votes.setdefault(slot, Counter())[value] += 1
    kept = {}
    for slot, counts in votes.items():
        value, most = counts.most_common(1)[0]  # of equal ones the first said
        voters = len(texts) if slot[0] in ("object", "background") else counts.total()
        if keep == "union" or 2 * most > voters:
            kept[slot] = value
    kinds = [slot[1] for slot in kept if slot[0] == "object"]
    kinds = sorted(kinds, key=lambda kind: -votes["object", kind]["there"])[:MOST]
    return _printed(kinds, kept)


def _slots(text: str) -> dict[Slot, str]:
    """What one text says: the first value of each slot."""
    found: dict[Slot, str] = {}
    for fact in (fact for part in re.split("[,;]", text) for fact in parse(part)):  # "tulip, cat" is no tulip cat
        value = canonical(fact.value)
        if fact.type == "background":
            found.setdefault(("background",), value[0])
        elif fact.type == "object":
            found.setdefault(("object", value[0]), "there")
        elif fact.type == "relation":
            a, relation, b = value
            if a != b:
                axis = "beside" if relation == "left of" else "over"
                found.setdefault((axis, *sorted((a, b))), a)  # which is left of, or above, the other
        elif value[0]:  # a colour of nothing fills no slot
            found.setdefault((fact.type, value[0]), value[1])
    return found


def _printed(kinds: Sequence[str], kept: dict[Slot, str]) -> str:
    """The sentence of the grammar."""

    def phrase(kind: str) -> str:
        size, colour, subkind = (kept.get((slot, kind)) for slot in ("size", "attribute", "subkind"))
        return noun_phrase(kind, size=size, colour=colour, subkind=subkind)

    def between(a: str, b: str) -> str:
        for axis, words in (("beside", ("left of", "right of")), ("over", ("above", "below"))):
            first = kept.get((axis, *sorted((a, b))))
            if first is not None:
                return words[0] if first == a else words[1]
        return ""

    said: list[str] = []
    text = ""
    rest = list(kinds)
    while rest:
        kind = rest.pop(0)
        if not said:
            text = phrase(kind)
        elif len(said) == 1 and (relation := between(said[0], kind)):
            text += f" {relation} {phrase(kind)}"
        else:
            text += f" and {phrase(kind)}"
            anchor = next((other for other in said if between(kind, other)), None)
            after = next((other for other in rest if between(kind, other)), None)
            if anchor is not None:
                text += f" {between(kind, anchor)} the {anchor}"
            elif after is not None:
                rest.remove(after)
                said.append(kind)
                text += f" {between(kind, after)} {phrase(after)}"
                kind = after
        said.append(kind)
    place = PLACE.get(kept.get(("background",), ""), "")
    if not text:
        return place
    return f"{text} {place}".strip()
