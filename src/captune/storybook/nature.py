"""The living kinds of a storybook scene, each drawn in the square [-1, 1] x [-1, 1] (y grows downwards)."""

from __future__ import annotations

import math

from captune.storybook.palette import BROWN, CREAM, PALETTE, SAGE, SLATE, TAUPE, Shades
from captune.storybook.pen import Pen, bend, box, leaf, oval, smooth


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
