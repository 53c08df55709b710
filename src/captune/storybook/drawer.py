"""From a caption to an image: the scene that the caption describes, completed where it is silent, and drawn.

The scene gets the things that the caption names with what it says of them, placed on the 2 x 2 grid so that most of the
stated relations hold, in reading order otherwise. Unstated: colour white, size small, the first sub-kind, the snow
ground, whose layout is the seed's. A fifth to ninth thing stands between the cells; what is said of no thing is not
drawn; a caption that states nothing is an empty ground.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

from captune.storybook.parser import parse, read
from captune.storybook.world import BACKGROUNDS, COLOURS, KINDS, SIZES, Scene, Thing, relations

if TYPE_CHECKING:
    from PIL.Image import Image

# What an image shows where the caption is silent.
_GROUND, _COLOUR, _SIZE = "snow", "white", "small"
_CELLS = ((0.27, 0.27), (0.73, 0.27), (0.27, 0.73), (0.73, 0.73))
_BETWEEN = ((0.5, 0.27), (0.5, 0.73), (0.27, 0.5), (0.73, 0.5), (0.5, 0.5))


class CaptionDrawer:
    """Draws captions; `seed` is the variation of the background."""

    def __init__(self, seed: int = 0) -> None:
        from captune import __version__

        self.seed = seed
        self.signature = f"storybook@{__version__}|unstated:{_COLOUR},{_SIZE},{_GROUND}"

    def __call__(self, caption: str) -> Image:
        """Return the image of a caption, 64 x 64 pixels; equal captions give equal images."""
        from captune.storybook import IMAGE_SIZE
        from captune.storybook.draw import draw

        return draw(scene_of(caption, self.seed), IMAGE_SIZE)


def scene_of(caption: str, variation: int = 0) -> Scene:
    """Return the scene that a caption describes, completed as the module describes."""
    things: list[dict[str, Any]] = []
    named: dict[str, int] = {}  # kind -> the thing named last
    for mention in read(caption)[1]:
        if not (mention.definite and mention.kind in named):
            named[mention.kind] = len(things)
            things.append({"kind": mention.kind})
        thing = things[named[mention.kind]]
        for word, _, _ in mention.modifiers:
            if word in COLOURS or word in SIZES:
                thing.setdefault("colour" if word in COLOURS else "size", word)
            elif word in KINDS[mention.kind]:
                thing.setdefault("subkind", word)
    unstated = {"colour": _COLOUR, "size": _SIZE}
    made = [
        Thing(**{"subkind": next(iter(KINDS[t["kind"]]), None), **unstated, **t}, x=x, y=y)
        for t, (x, y) in zip(things, _CELLS + _BETWEEN, strict=False)
    ]
    facts = parse(caption)
    stated = [fact.value for fact in facts if fact.type == "relation"]

    def places(order: tuple[tuple[float, float], ...]) -> list[Thing]:
        return [Thing(t.kind, t.subkind, t.colour, t.size, x, y) for t, (x, y) in zip(made, order, strict=False)]

    def held(order: tuple[tuple[float, float], ...]) -> int:
        there = {thing.kind: thing for thing in reversed(places(order))}
        return sum(a in there and b in there and r in relations(there[a], there[b]) for a, r, b in stated)

    best = max(itertools.permutations(_CELLS), key=held)  # the first of the best
    grounds = [fact.value[0] for fact in facts if fact.type == "background" and fact.value[0] in BACKGROUNDS]
    return Scene(grounds[0] if grounds else _GROUND, variation, tuple(places(best + _BETWEEN)))
