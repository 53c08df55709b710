"""The kinds of things of a storybook scene, each drawn in the square [-1, 1] x [-1, 1] (y grows downwards)."""

from __future__ import annotations

import math
from collections.abc import Callable

from captune.storybook.palette import BROWN, CREAM, PALETTE, PANE, SAGE, SLATE, TAUPE, Shades
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


def eye(pen: Pen, x: float, y: float, radius: float) -> None:
    """Draw a round eye."""
    pen.shape(oval(x, y, radius, radius), CREAM)
    pen.shape(oval(x, y, radius * 0.62, radius * 0.62), (40, 36, 44))


def tree(pen: Pen, s: Shades, subkind: str | None) -> None:
    """Draw a pine or a palm."""
    if subkind == "pine":
        pen.shape(box(-0.13, 0.6, 0.13, 1.0), BROWN, edge=True)
        for top, bottom, half in ((-0.3, 0.72, 0.84), (-0.68, 0.24, 0.64), (-1.0, -0.24, 0.44)):
            tier = [(0.0, top), *bend((half, bottom), (0.0, bottom + 0.14), (-half, bottom))]
            pen.shape(tier, s.body, edge=True)
            with pen.within(tier):
                pen.shape([(0.12, top), (half, bottom), (half * 0.35, bottom + 0.1)], s.deep)
                pen.stroke([*tier, tier[0]], s.ink, pen.width)
        return
    trunk = bend((0.02, 1.0), (0.26, 0.3), (-0.02, -0.4))
    back = bend((-0.02, -0.4), (0.02, 0.3), (-0.26, 1.0))
    pen.shape(trunk + back, BROWN, edge=True)
    heart = (-0.02, -0.42)
    fronds = (
        ((-0.3, -0.66), (-0.78, 0.28), (-0.1, -0.08)),
        ((0.3, -0.66), (0.78, 0.28), (0.1, -0.08)),
        ((-0.56, -1.14), (-1.04, -0.28), (-0.34, -0.36)),
        ((0.56, -1.14), (1.04, -0.28), (0.34, -0.36)),
        ((-0.02, -1.2), (-0.56, -1.0), (-0.36, -0.5)),
        ((0.02, -1.2), (0.58, -1.0), (0.36, -0.5)),
    )
    for number, (over, tip, under) in enumerate(fronds):
        tone = s.deep if number < 2 else s.body
        pen.shape(bend(heart, over, tip) + bend(tip, under, heart), tone, edge=True)
    for x in (-0.09, 0.1):
        pen.shape(oval(x, -0.32, 0.09, 0.09), TAUPE)


def fish(pen: Pen, s: Shades, subkind: str | None) -> None:
    """Draw a striped or a spotted fish."""
    tail = smooth([(0.34, 0.0), (0.7, -0.34), (1.0, -0.5), (0.88, 0.0), (1.0, 0.5), (0.7, 0.34)])
    pen.shape(tail, s.deep, edge=True)
    pen.shape(smooth([(-0.4, -0.42), (-0.12, -0.84), (0.3, -0.66), (0.3, -0.3)]), s.deep, edge=True)
    pen.shape(smooth([(-0.14, 0.5), (0.14, 0.78), (0.3, 0.6), (0.2, 0.4)]), s.deep, edge=True)
    body = smooth(
        [(-1.0, 0.02), (-0.7, -0.4), (-0.2, -0.58), (0.3, -0.36), (0.58, 0.0), (0.3, 0.36), (-0.2, 0.58), (-0.7, 0.42)]
    )
    pen.shape(body, s.body, edge=True)
    with pen.within(body):
        if subkind == "striped":
            for x in (-0.26, 0.06, 0.38):
                pen.stroke(bend((x, -0.7), (x + 0.14, 0.0), (x, 0.7)), s.detail, 0.15)
        else:
            for x, y, r in ((-0.2, -0.26, 0.14), (0.16, -0.08, 0.14), (-0.2, 0.26, 0.14), (0.16, 0.32, 0.12)):
                pen.shape(oval(x, y, r, r), s.detail)
        pen.stroke([*body, body[0]], s.ink, pen.width)
    eye(pen, -0.64, -0.1, 0.14)


def bird(pen: Pen, s: Shades, subkind: str | None) -> None:
    """Draw a crested or a long-tailed bird."""
    long = subkind == "longtailed"
    x = 0.3 if long else 0.0
    if long:
        pen.shape(leaf((0.2, 0.1), (-1.0, 0.94), 0.26), s.deep, edge=True)
        pen.shape(leaf((0.2, 0.0), (-1.0, 0.5), 0.28), s.body, edge=True)
    else:
        for tip in ((0.04, -0.92), (0.36, -1.0), (0.66, -0.96)):
            pen.shape(leaf((0.42, -0.3), tip, 0.22), s.deep, edge=True)
        pen.shape([(-0.4, 0.0), (-0.94, -0.1), (-0.9, 0.3), (-0.4, 0.4)], s.deep, edge=True)
    for leg in (x - 0.06, x + 0.16):
        pen.stroke([(leg, 0.5), (leg + 0.02, 0.86), (leg + 0.14, 0.88)], TAUPE, 0.08)
    head = (x + 0.38, -0.3)
    pen.shape(
        [(head[0] + 0.2, head[1] - 0.12), (min(head[0] + 0.6, 1.0), head[1] + 0.04), (head[0] + 0.2, head[1] + 0.18)],
        BROWN,
        edge=True,
    )
    trunk = [
        (x - 0.6, 0.12),
        (x - 0.1, -0.18),
        (x + 0.1, -0.46),
        (x + 0.38, -0.62),
        (x + 0.66, -0.44),
        (x + 0.68, -0.16),
    ]
    pen.shape(smooth([*trunk, (x + 0.56, 0.3), (x + 0.2, 0.62), (x - 0.26, 0.54)]), s.body, edge=True)
    pen.shape(
        smooth([(x + 0.26, 0.0), (x + 0.2, 0.34), (x - 0.18, 0.4), (x - 0.62, 0.22), (x - 0.2, 0.02)]),
        s.deep,
        edge=True,
    )
    eye(pen, head[0] + 0.08, head[1] - 0.04, 0.12)


def flower(pen: Pen, s: Shades, subkind: str | None) -> None:
    """Draw a tulip or a daisy."""
    pen.stroke(bend((0.0, 0.0), (0.06, 0.5), (0.0, 0.98)), SAGE, 0.13)
    pen.shape(leaf((0.0, 0.96), (0.52, 0.36), 0.24), SAGE, edge=True)
    if subkind == "tulip":
        pen.shape(leaf((0.0, 0.96), (-0.52, 0.36), 0.24), SAGE, edge=True)
        pen.shape(leaf((0.0, 0.1), (0.0, -1.0), 0.7), s.deep, edge=True)
        for side in (-1, 1):
            petal = [(0.0, 0.26), (side * 0.42, 0.14), (side * 0.6, -0.3), (side * 0.54, -0.9), (side * 0.16, -0.5)]
            pen.shape(smooth(petal), s.body, edge=True)
        return
    for ring, tone in ((0, s.deep), (1, s.body)):
        for k in range(6):
            angle = 60 * k + 30 * ring
            x, y = 0.44 * math.cos(math.radians(angle)), 0.44 * math.sin(math.radians(angle)) - 0.34
            pen.shape(oval(x, y, 0.26, 0.17, angle), tone, edge=True)
    pen.shape(oval(0, -0.34, 0.22, 0.22), BROWN, edge=True)


def butterfly(pen: Pen, s: Shades, subkind: str | None) -> None:
    """Draw a butterfly."""
    for side in (-1, 1):
        lower = [(side * 0.06, 0.02), (side * 0.56, 0.06), (side * 0.74, 0.46), (side * 0.46, 0.8), (side * 0.18, 0.5)]
        pen.shape(smooth(lower), s.deep, edge=True)
        upper = [
            (side * 0.06, 0.06),
            (side * 0.24, -0.5),
            (side * 0.76, -0.84),
            (side * 0.98, -0.5),
            (side * 0.72, 0.06),
        ]
        pen.shape(smooth(upper), s.body, edge=True)
        pen.shape(oval(side * 0.7, -0.46, 0.14, 0.14), s.detail)
        pen.shape(oval(side * 0.46, 0.44, 0.1, 0.1), s.detail)
        pen.stroke(bend((0.0, -0.4), (side * 0.06, -0.8), (side * 0.26, -0.88)), SLATE, 0.06)
    pen.shape(oval(0, 0.08, 0.11, 0.56), SLATE)


def mushroom(pen: Pen, s: Shades, subkind: str | None) -> None:
    """Draw a mushroom."""
    stem = [(-0.24, 0.1), (-0.22, 0.5), (-0.36, 0.84), (0.0, 0.94), (0.36, 0.84), (0.22, 0.5), (0.24, 0.1)]
    pen.shape(smooth(stem), (232, 220, 198), edge=True)
    cap = [*oval(0, 0.12, 0.96, 1.04, 0, 180, 360), *bend((0.96, 0.12), (0.9, 0.36), (0.5, 0.28))]
    cap += bend((-0.5, 0.28), (-0.9, 0.36), (-0.96, 0.12))
    pen.shape(cap, s.body, edge=True)
    with pen.within(cap):
        for x, y, r in ((-0.1, -0.52, 0.18), (0.48, -0.2, 0.15), (-0.56, -0.08, 0.15), (0.0, 0.06, 0.12)):
            pen.shape(oval(x, y, r, r * 0.9), s.detail)


def cat(pen: Pen, s: Shades, subkind: str | None) -> None:
    """Draw a cat."""
    pen.stroke(
        smooth([(0.3, 0.84), (0.72, 0.76), (0.8, 0.36), (0.66, 0.06)], closed=False), s.ink, 0.22 + 2 * pen.width
    )
    pen.stroke(smooth([(0.3, 0.84), (0.72, 0.76), (0.8, 0.36), (0.66, 0.06)], closed=False), s.body, 0.22)
    pen.shape(
        smooth([(0.0, -0.2), (0.34, 0.1), (0.5, 0.7), (0.36, 0.98), (-0.36, 0.98), (-0.5, 0.7), (-0.34, 0.1)]),
        s.body,
        edge=True,
    )
    for x in (-0.14, 0.14):
        pen.stroke([(x, 0.62), (x, 0.94)], s.ink, pen.width)
    for side in (-1, 1):
        pen.shape([(side * 0.54, -0.44), (side * 0.5, -1.0), (side * 0.08, -0.74)], s.body, edge=True)
        pen.shape([(side * 0.44, -0.6), (side * 0.43, -0.84), (side * 0.24, -0.7)], s.deep)
    pen.shape(oval(0, -0.38, 0.56, 0.44), s.body, edge=True)
    pen.shape([(-0.5, -0.52), (-0.2, -0.76), (0.2, -0.76), (0.5, -0.52), (0.3, -0.3), (-0.3, -0.3)], s.body)
    for side in (-1, 1):
        eye(pen, side * 0.22, -0.42, 0.13)
        pen.stroke([(side * 0.3, -0.2), (side * 0.66, -0.26)], s.detail, 0.035)
        pen.stroke([(side * 0.3, -0.14), (side * 0.64, -0.1)], s.detail, 0.035)
    pen.shape([(-0.08, -0.26), (0.08, -0.26), (0.0, -0.16)], TAUPE if s.body != PALETTE["black"] else s.detail)


KINDS: dict[str, Callable[[Pen, Shades, str | None], None]] = {
    "house": house,
    "car": car,
    "tree": tree,
    "boat": boat,
    "fish": fish,
    "bird": bird,
    "flower": flower,
    "ball": ball,
    "kite": kite,
    "butterfly": butterfly,
    "umbrella": umbrella,
    "mushroom": mushroom,
    "balloon": balloon,
    "cat": cat,
    "rocket": rocket,
    "cup": cup,
}
