"""The made kinds of a storybook scene, each drawn in the square [-1, 1] x [-1, 1] (y grows downwards)."""

from __future__ import annotations

import math
from collections.abc import Callable

from captune.storybook import nature
from captune.storybook.palette import BROWN, CREAM, PALETTE, PANE, SLATE, TAUPE, Shades
from captune.storybook.pen import Pen, Point, bend, box, leaf, oval, smooth


def star(x: float, y: float, outer: float, inner: float) -> list[Point]:
    """Return the ten corners of a five-pointed star around (x, y)."""
    corners = [(outer if k % 2 == 0 else inner, math.radians(36 * k - 90)) for k in range(10)]
    return [(x + r * math.cos(angle), y + r * math.sin(angle)) for r, angle in corners]


def house(pen: Pen, s: Shades, subkind: str | None) -> None:
    """Draw a tall or a wide house."""
    if subkind == "tall":
        pen.shape(box(0.2, -0.85, 0.4, -0.4), TAUPE, edge=True)
        pen.shape(box(-0.52, -0.42, 0.52, 1.0), s.body, edge=True)
        pen.shape([(-0.7, -0.36), (0.0, -1.0), (0.7, -0.36)], BROWN, edge=True)
        for x in (-0.25, 0.25):
            for y in (-0.08, 0.32):
                pen.shape(box(x - 0.13, y - 0.14, x + 0.13, y + 0.12), CREAM, edge=True)
        pen.shape(box(-0.16, 0.6, 0.16, 1.0, 0.06), BROWN, edge=True)
        return
    pen.shape(box(0.42, -0.78, 0.64, -0.3), TAUPE, edge=True)
    pen.shape(box(-0.92, -0.2, 0.92, 0.76), s.body, edge=True)
    pen.shape([(-1.0, -0.14), (-0.7, -0.6), (0.7, -0.6), (1.0, -0.14)], BROWN, edge=True)
    for x in (-0.58, 0.58):
        pen.shape(box(x - 0.18, 0.1, x + 0.18, 0.4), CREAM, edge=True)
        pen.stroke([(x, 0.1), (x, 0.4)], s.ink, pen.width * 0.7)
    pen.shape(box(-0.15, 0.2, 0.15, 0.76, 0.06), BROWN, edge=True)


def car(pen: Pen, s: Shades, subkind: str | None) -> None:
    """Draw a car."""
    cabin = [(-0.66, 0.0), (-0.44, -0.52), (0.3, -0.56), (0.64, 0.0)]
    pen.shape(smooth([*cabin[:1], (-0.5, -0.5), (-0.3, -0.6), (0.22, -0.6), (0.4, -0.5), *cabin[3:]]), s.body)
    pen.shape([(-0.52, -0.06), (-0.38, -0.44), (-0.06, -0.44), (-0.06, -0.06)], PANE, edge=True)
    pen.shape([(0.06, -0.06), (0.06, -0.44), (0.28, -0.44), (0.5, -0.06)], PANE, edge=True)
    side = [
        (-0.98, 0.3),
        (-0.94, -0.02),
        (-0.6, -0.1),
        (0.6, -0.1),
        (0.95, 0.08),
        (1.0, 0.34),
        (0.9, 0.46),
        (-0.9, 0.46),
    ]
    pen.shape(smooth(side), s.body)
    pen.stroke([(-0.92, 0.22), (0.95, 0.22)], s.deep, 0.08)
    pen.shape(oval(0.88, 0.12, 0.08, 0.08), CREAM)
    for x in (-0.52, 0.54):
        pen.shape(oval(x, 0.44, 0.27, 0.27), SLATE, edge=True)
        pen.shape(oval(x, 0.44, 0.11, 0.11), (206, 204, 200))


def boat(pen: Pen, s: Shades, subkind: str | None) -> None:
    """Draw a sailing or a rowing boat."""
    if subkind == "sailing":
        pen.stroke([(0.0, -0.98), (0.0, 0.5)], BROWN, 0.09)
        pen.shape([(0.08, -0.94), *bend((0.08, -0.94), (0.72, -0.4), (0.82, 0.34)), (0.08, 0.34)], s.body, edge=True)
        pen.shape(
            [(-0.08, -0.72), *bend((-0.08, -0.72), (-0.5, -0.2), (-0.74, 0.34)), (-0.08, 0.34)], s.body, edge=True
        )
        hull = [(-0.98, 0.46), (0.98, 0.46), *bend((0.98, 0.46), (0.8, 0.9), (0.5, 0.94)), (-0.56, 0.94)]
        pen.shape(hull, s.body, edge=True)
        pen.stroke([(-0.84, 0.62), (0.86, 0.62)], s.deep, 0.09)
        return
    hull = [*bend((-1.0, -0.46), (-0.4, 0.04), (0.94, -0.1)), *bend((0.94, -0.1), (0.92, 0.54), (0.6, 0.56))]
    hull += [*bend((-0.5, 0.56), (-0.86, 0.42), (-1.0, -0.46))]
    pen.shape([(-0.84, -0.3), (-0.3, -0.24), (0.5, -0.24), (0.9, -0.1), (0.4, 0.06), (-0.4, 0.04)], TAUPE, edge=True)
    pen.shape(hull, s.body, edge=True)
    with pen.within(hull):
        pen.stroke(bend((-0.96, -0.2), (-0.4, 0.3), (0.98, 0.14)), s.detail, 0.1)
    for colour, grow in ((s.ink, 2 * pen.width), (BROWN, 0.0)):
        pen.stroke([(-0.22, -0.66), (0.3, 0.5)], colour, 0.11 + grow)
    pen.shape(leaf((0.2, 0.3), (0.52, 1.0), 0.34), BROWN, edge=True)


def ball(pen: Pen, s: Shades, subkind: str | None) -> None:
    """Draw a striped or a starred ball."""
    disc = oval(0, 0, 0.86, 0.86)
    pen.turn = -20
    pen.shape(disc, s.body)
    with pen.within(disc):
        if subkind == "striped":
            for y in (-0.5, 0.0, 0.5):
                pen.stroke(bend((-1.0, y), (0.0, y + 0.22), (1.0, y)), s.detail, 0.2)
        else:
            pen.shape(star(0.0, 0.02, 0.62, 0.27), s.detail)
    pen.turn = 0


def kite(pen: Pen, s: Shades, subkind: str | None) -> None:
    """Draw a diamond or a box kite."""
    if subkind == "diamond":
        tail = smooth([(-0.3, 0.3), (-0.46, 0.5), (-0.2, 0.66), (-0.42, 0.82), (-0.2, 0.98)], closed=False)
        pen.stroke(tail, s.ink, 0.07)
        for x, y in ((-0.42, 0.52), (-0.34, 0.82)):
            pen.shape([(x - 0.17, y - 0.13), (x + 0.17, y + 0.1), (x + 0.17, y - 0.13), (x - 0.17, y + 0.1)], s.body)
        top, right, bottom, left, heart = (0.34, -1.0), (0.8, -0.14), (-0.3, 0.4), (-0.56, -0.68), (0.145, -0.385)
        pen.shape([top, right, bottom, left], s.body)
        pen.shape([heart, right, bottom], s.deep)
        pen.shape([heart, top, left], s.deep)
        for path in ([top, bottom], [left, right]):
            pen.stroke(path, s.ink, pen.width)
        return
    pen.turn = 14
    pen.stroke(bend((-0.1, 0.6), (-0.34, 0.86), (-0.1, 1.06)), TAUPE, 0.07)
    for x in (-0.58, 0.28, 0.6):
        pen.stroke([(x, -0.7), (x, 0.56)], BROWN, 0.08)
    for y in (-0.84, 0.18):
        pen.shape([(-0.58, y), (0.28, y), (0.62, y - 0.13), (-0.24, y - 0.13)], TAUPE)
        pen.shape([(0.28, y), (0.62, y - 0.13), (0.62, y + 0.35), (0.28, y + 0.48)], s.deep, edge=True)
        pen.shape([(-0.58, y), (0.28, y), (0.28, y + 0.48), (-0.58, y + 0.48)], s.body, edge=True)
    pen.turn = 0


def umbrella(pen: Pen, s: Shades, subkind: str | None) -> None:
    """Draw an umbrella."""
    pen.stroke([(0.0, -0.9), (0.0, 0.7), *oval(-0.17, 0.7, 0.17, 0.2, 0, 0, 180)], BROWN, 0.12)
    edge: list[Point] = []
    for left in (-1.0, -1 / 3, 1 / 3):
        edge += bend((left, 0.1), (left + 1 / 3, -0.2), (left + 2 / 3, 0.1))
    dome = oval(0, 0.1, 1.0, 0.92, 0, 180, 360) + edge[::-1]
    pen.shape(dome, s.body)
    with pen.within(dome):
        middle = oval(0, 0.1, 0.34, 0.92, 0, 180, 360)
        pen.shape(middle, s.deep)
        for x in (-1, 1):
            pen.stroke(bend((0.0, -0.82), (x * 0.34, -0.6), (x / 3, 0.1)), s.ink, pen.width)


def balloon(pen: Pen, s: Shades, subkind: str | None) -> None:
    """Draw a balloon."""
    pen.stroke(smooth([(0.0, 0.4), (0.12, 0.58), (-0.1, 0.78), (0.04, 0.98)], closed=False), TAUPE, 0.07)
    pen.shape([(0.0, 0.3), (0.14, 0.5), (-0.14, 0.5)], s.deep, edge=True)
    skin = smooth(
        [
            (0.0, -1.0),
            (0.48, -0.8),
            (0.6, -0.36),
            (0.36, 0.14),
            (0.0, 0.38),
            (-0.36, 0.14),
            (-0.6, -0.36),
            (-0.48, -0.8),
        ]
    )
    pen.shape(skin, s.body, edge=True)
    pen.shape(oval(-0.26, -0.6, 0.1, 0.2, 24), s.detail if s.body != PALETTE["yellow"] else CREAM)


def rocket(pen: Pen, s: Shades, subkind: str | None) -> None:
    """Draw a rocket."""
    pen.turn = 18
    for x, y, r in ((-0.2, 0.82, 0.16), (0.2, 0.82, 0.16), (0.0, 0.9, 0.19)):
        pen.shape(oval(x, y, r, r), (226, 222, 216))
    for side in (-1, 1):
        pen.shape([(side * 0.26, 0.1), (side * 0.68, 0.5), (side * 0.64, 0.84), (side * 0.2, 0.6)], s.deep, edge=True)
    pen.shape(box(-0.2, 0.56, 0.2, 0.74), SLATE, edge=True)
    hull = smooth([(0.0, -1.02), (0.26, -0.66), (0.38, -0.1), (0.3, 0.58), (-0.3, 0.58), (-0.38, -0.1), (-0.26, -0.66)])
    pen.shape(hull, s.body, edge=True)
    pen.shape(oval(0, -0.2, 0.23, 0.23), TAUPE, edge=True)
    pen.shape(oval(0, -0.2, 0.16, 0.16), PANE)
    pen.stroke([(0.0, 0.22), (0.0, 0.66)], s.deep, 0.14)
    pen.turn = 0


def cup(pen: Pen, s: Shades, subkind: str | None) -> None:
    """Draw a cup."""
    for x in (-0.34, 0.06):
        steam = smooth([(x, -0.5), (x + 0.1, -0.64), (x - 0.04, -0.8), (x + 0.06, -0.96)], closed=False)
        pen.stroke(steam, (206, 202, 200), 0.09)
    ring = oval(0.52, 0.24, 0.3, 0.32)
    pen.stroke(ring, s.ink, 0.17 + 2 * pen.width)
    pen.stroke(ring, s.body, 0.17)
    mug = [
        (-0.8, -0.26),
        (0.52, -0.26),
        *bend((0.5, 0.5), (0.46, 0.92), (0.1, 0.92)),
        *bend((-0.38, 0.92), (-0.74, 0.92), (-0.78, 0.5)),
    ]
    pen.shape(mug, s.body, edge=True)
    pen.shape(oval(-0.14, -0.26, 0.66, 0.17), s.deep, edge=True)
    pen.shape(oval(-0.14, -0.24, 0.52, 0.1), BROWN)
    pen.stroke(bend((-0.68, 0.4), (-0.14, 0.56), (0.42, 0.4)), s.deep, 0.14)


KINDS: dict[str, Callable[[Pen, Shades, str | None], None]] = {
    "house": house,
    "car": car,
    "tree": nature.tree,
    "boat": boat,
    "fish": nature.fish,
    "bird": nature.bird,
    "flower": nature.flower,
    "ball": ball,
    "kite": kite,
    "butterfly": nature.butterfly,
    "umbrella": umbrella,
    "mushroom": nature.mushroom,
    "balloon": balloon,
    "cat": nature.cat,
    "rocket": rocket,
    "cup": cup,
}
