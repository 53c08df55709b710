"""The seven grounds of a storybook scene, in light tones so that things stand out; eight layouts of each.

Units: 1 is the image's height; a ground is `WIDE` units wide, and a image is a window of width 1 on it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from functools import lru_cache

from PIL import Image

from captune.storybook.pen import Colour, Fill, Pen, Point, bend, box, mix, oval, smooth

WIDE = 1.4
LAYOUTS = 8
WHITE: Colour = (255, 255, 255)


def _ridge(rng: random.Random, level: float, swing: float, waves: float = 1.4) -> list[Point]:
    """A rolling line across the ground near y = level, closed at the bottom."""
    a, b = rng.uniform(0, 6.28), rng.uniform(0, 6.28)
    line = []
    for step in range(61):
        x = WIDE * step / 60
        wave = 0.7 * math.sin(waves * 4 * x + a) + 0.3 * math.sin(waves * 9 * x + b)
        line.append((x, level + swing * wave))
    return [*line, (WIDE, 1.05), (0.0, 1.05)]


def _sky(pen: Pen, top: Colour, bottom: Colour, level: float) -> None:
    pen.shape(box(-0.1, -0.02, WIDE + 0.1, level + 0.15), (top, bottom))


def _sun(pen: Pen, rng: random.Random, colour: Colour, radius: float = 0.075, glow: float = 0.3) -> None:
    x, y = rng.uniform(0.4, 1.0), rng.uniform(0.12, 0.24)
    for grow, strength in ((2.2, glow * 0.5), (1.55, glow)):
        pen.shape(oval(x, y, radius * grow, radius * grow), mix(colour, WHITE, 0.5), strength=strength)
    pen.shape(oval(x, y, radius, radius), colour)


def _clouds(pen: Pen, rng: random.Random, count: int, colour: Colour = (250, 252, 253)) -> None:
    for k in range(count):
        x, y = WIDE * (k + rng.uniform(0.2, 0.8)) / count, rng.uniform(0.07, 0.33)
        s = rng.uniform(0.7, 1.15)
        puffs = ((-0.085, 0.0, 0.045), (-0.03, -0.03, 0.06), (0.04, -0.018, 0.05), (0.095, 0.006, 0.036))
        for dx, dy, r in puffs:
            pen.shape(oval(x + dx * s, y + dy * s, r * s, r * s), colour)
        pen.shape(box(x - 0.125 * s, y - 0.002, x + 0.13 * s, y + 0.045 * s, 0.02 * s), colour)


def _ripples(pen: Pen, rng: random.Random, top: float, bottom: float, count: int, colour: Colour) -> None:
    for _ in range(count):
        depth = rng.uniform(0.05, 1)
        x, y, half = rng.uniform(0, WIDE), top + (bottom - top) * depth, 0.03 + 0.05 * depth
        pen.stroke(bend((x - half, y), (x, y + 0.012), (x + half, y)), colour, 0.009, strength=0.8)


def _fir(pen: Pen, x: float, y: float, height: float, colour: Fill) -> None:
    """A far fir: a small, pale, plain silhouette (no trunk, no contour)."""
    w = height * 0.32
    pen.shape([(x, y - height), (x + w, y), (x - w, y)], colour)


def beach(pen: Pen, rng: random.Random) -> None:
    """Draw sea, shore and sand."""
    level, shore = rng.uniform(0.38, 0.46), rng.uniform(0.62, 0.7)
    _sky(pen, (196, 225, 240), (240, 246, 240), level)
    _sun(pen, rng, (255, 240, 190))
    _clouds(pen, rng, rng.randint(2, 3))
    pen.shape(box(0, level, WIDE, 0.9), ((150, 205, 220), (190, 230, 228)))
    _ripples(pen, rng, level + 0.02, shore - 0.06, 14, (222, 242, 242))
    sand = _ridge(rng, shore, 0.03, 1.1)
    wet = [(x, y - 0.035) for x, y in sand[:-2]] + sand[-2:]
    pen.shape(wet, (246, 252, 250))
    pen.shape(sand, (226, 206, 168))
    pen.shape([(x, y + 0.03) for x, y in sand], ((245, 229, 192), (238, 216, 172)))
    for _ in range(26):
        x, y, r = rng.uniform(0, WIDE), rng.uniform(shore + 0.09, 0.98), rng.uniform(0.004, 0.008)
        pen.shape(oval(x, y, r * 1.6, r), (216, 192, 150))
    for _ in range(3):
        x, y = rng.uniform(0.05, WIDE), rng.uniform(shore + 0.1, 0.95)
        shell = [(x, y + 0.016), *oval(x, y, 0.022, 0.022, 0, 180, 360)]
        pen.shape(shell, (250, 242, 230))
        pen.stroke([(x, y - 0.016), (x, y + 0.01)], (222, 200, 184), 0.005)


def meadow(pen: Pen, rng: random.Random) -> None:
    """Draw hills, grass and flowers."""
    level = rng.uniform(0.44, 0.54)
    _sky(pen, (200, 228, 242), (242, 248, 238), level)
    if rng.random() < 0.6:
        _sun(pen, rng, (255, 242, 196))
    _clouds(pen, rng, rng.randint(2, 4))
    pen.shape(_ridge(rng, level, 0.035), (202, 224, 196))
    for _ in range(rng.randint(2, 5)):
        x, y = rng.uniform(0, WIDE), level + rng.uniform(0.03, 0.07)
        for dx, r in ((-0.024, 0.022), (0.0, 0.031), (0.026, 0.022)):
            pen.shape(oval(x + dx, y - 0.02, r, r), (176, 205, 172))
    pen.shape(_ridge(rng, level + 0.1, 0.03), ((198, 224, 172), (186, 216, 158)))
    pen.shape(_ridge(rng, level + 0.26, 0.03, 1.0), ((188, 218, 150), (170, 205, 132)))
    for _ in range(30):
        x, y = rng.uniform(0, WIDE), rng.uniform(level + 0.16, 0.99)
        s = 0.4 + 0.7 * (y - level)
        for lean in (-0.014, 0.0, 0.014):
            pen.stroke([(x, y), (x + lean * s, y - 0.032 * s)], (150, 188, 116), 0.008 * s)
    for _ in range(22):
        x, y = rng.uniform(0, WIDE), rng.uniform(level + 0.2, 0.98)
        pen.shape(oval(x, y, 0.009, 0.009), rng.choice([(255, 250, 240), (250, 232, 190), (244, 214, 220)]))


def desert(pen: Pen, rng: random.Random) -> None:
    """Draw mesas and dunes."""
    level = rng.uniform(0.46, 0.55)
    _sky(pen, (246, 222, 198), (253, 242, 218), level)
    _sun(pen, rng, (255, 246, 214), 0.1, 0.5)
    for _ in range(rng.randint(1, 3)):  # mesas
        x, w, h = rng.uniform(0, WIDE), rng.uniform(0.1, 0.2), rng.uniform(0.08, 0.15)
        mesa = [(x - w, level + 0.06), (x - w * 0.72, level - h), (x + w * 0.66, level - h), (x + w, level + 0.06)]
        pen.shape(mesa, ((226, 184, 160), (236, 204, 178)))
    for lift, fill in ((0.0, (240, 212, 172)), (0.13, (236, 204, 158)), (0.29, (243, 216, 170))):
        crest = _ridge(rng, level + lift, 0.04, rng.uniform(0.8, 1.2))
        pen.shape(crest, (mix(fill, WHITE, 0.25), mix(fill, (206, 152, 98), 0.18)))
        pen.stroke(crest[:-2], mix(fill, (200, 148, 104), 0.35), 0.008, strength=0.7)
    for _ in range(5):
        x, y, w = rng.uniform(0, WIDE), rng.uniform(level + 0.32, 0.96), rng.uniform(0.06, 0.12)
        pen.stroke(bend((x - w, y), (x, y - 0.025), (x + w, y)), (222, 186, 138), 0.007)
    for _ in range(rng.randint(3, 4)):  # cacti far away
        x, y, s = rng.uniform(0.05, WIDE), level + rng.uniform(0.12, 0.2), rng.uniform(0.85, 1.25)
        tone = (164, 180, 142)
        pen.stroke([(x, y), (x, y - 0.13 * s)], tone, 0.034 * s)
        for side, up in ((-1, 0.05), (1, 0.07)):
            arm = [(x, y - up * s), (x + side * 0.042 * s, y - up * s), (x + side * 0.042 * s, y - (up + 0.04) * s)]
            pen.stroke(arm, tone, 0.022 * s)


def city(pen: Pen, rng: random.Random) -> None:
    """Draw rows of houses."""
    level = rng.uniform(0.72, 0.78)
    _sky(pen, (206, 216, 234), (246, 238, 232), level)
    _clouds(pen, rng, 2, (240, 243, 249))
    for tone, low, high, lit in (((202, 208, 224), 0.34, 0.56, False), ((182, 190, 208), 0.2, 0.42, True)):
        x = -0.02
        while x < WIDE:
            w, h = rng.uniform(0.1, 0.18), rng.uniform(low, high)
            shade = mix(tone, rng.choice([(210, 196, 196), (190, 200, 220), (214, 208, 200)]), 0.3)
            top = level - h
            pen.shape(box(x, top, x + w - 0.006, level + 0.02), (shade, mix(shade, WHITE, 0.2)))
            roof = rng.random()
            if roof < 0.25:
                pen.stroke([(x + w / 2, top), (x + w / 2, top - 0.06)], shade, 0.01)
            elif roof < 0.45:
                pen.shape(box(x + w * 0.2, top - 0.03, x + w * 0.55, top + 0.01), shade)
            if lit:
                glass = mix(shade, (250, 246, 230), 0.75)
                across = max(2, round(w / 0.045))
                for row in range(int((h - 0.03) / 0.06)):
                    for column in range(across):
                        if rng.random() < 0.8:
                            wx = x + (column + 0.5) * (w - 0.006) / across
                            wy = top + 0.035 + row * 0.06
                            pen.shape(box(wx - 0.011, wy - 0.014, wx + 0.011, wy + 0.014), glass)
            x += w
    pen.shape(box(0, level, WIDE, level + 0.05), (226, 224, 220))
    pen.shape(box(0, level + 0.045, WIDE, 1.02), ((186, 188, 196), (198, 200, 206)))
    pen.shape(box(0, level + 0.04, WIDE, level + 0.05), (166, 168, 178))
    for k in range(9):
        x, y = 0.17 * k, (level + 1.05) / 2
        pen.shape(box(x, y - 0.01, x + 0.09, y + 0.01), (240, 238, 230))


def snow(pen: Pen, rng: random.Random) -> None:
    """Draw snow-covered hills and firs."""
    level = rng.uniform(0.46, 0.56)
    _sky(pen, (190, 206, 226), (226, 234, 243), level)
    pen.shape(_ridge(rng, level - 0.04, 0.04), (214, 225, 238))
    for _ in range(rng.randint(5, 9)):
        x, y, h = rng.uniform(0, WIDE), level + rng.uniform(0.03, 0.07), rng.uniform(0.08, 0.14)
        _fir(pen, x, y, h, (178, 198, 212))
        pen.shape([(x, y - h), (x + 0.14 * h, y - 0.56 * h), (x - 0.14 * h, y - 0.56 * h)], (238, 243, 249))
    pen.shape(_ridge(rng, level + 0.07, 0.03), ((243, 247, 252), (222, 231, 243)))
    pen.shape(_ridge(rng, level + 0.24, 0.035, 1.0), ((250, 252, 254), (230, 237, 247)))
    for _ in range(6):
        x, y, w = rng.uniform(0, WIDE), rng.uniform(level + 0.3, 0.97), rng.uniform(0.04, 0.1)
        pen.stroke(bend((x - w, y), (x, y + 0.02), (x + w, y)), (208, 220, 236), 0.009)
    for _ in range(60):
        x, y, r = rng.uniform(0, WIDE), rng.uniform(0, level + 0.1), rng.uniform(0.006, 0.012)
        pen.shape(oval(x, y, r, r), (254, 254, 255))


def lake(pen: Pen, rng: random.Random) -> None:
    """Draw a lake before hills."""
    level = rng.uniform(0.4, 0.48)
    _sky(pen, (206, 226, 240), (244, 242, 230), level)
    _clouds(pen, rng, rng.randint(1, 3))
    hills = _ridge(rng, level - 0.1, 0.04, 1.2)
    pen.shape(hills, (190, 210, 200))
    near = _ridge(rng, level - 0.045, 0.022, 1.6)
    pen.shape(near, (170, 197, 172))
    pen.shape(box(0, level, WIDE, 1.02), ((172, 206, 222), (150, 194, 220)))
    with pen.within(box(0, level, WIDE, 1.0)):  # the hills' reflection
        mirror = [(x, 2 * level - y) for x, y in near[:-2]]
        pen.shape([*mirror, (WIDE, level - 0.01), (0.0, level - 0.01)], (160, 194, 196), strength=0.75)
    pen.stroke([(0.0, level), (WIDE, level)], (222, 226, 204), 0.014)
    _ripples(pen, rng, level + 0.08, 0.94, 24, (206, 228, 238))
    bank = smooth([(0.0, 0.93), (0.3, 0.965), (0.7, 0.95), (1.1, 0.97), (WIDE, 0.94)], closed=False)
    pen.shape([*bank, (WIDE, 1.05), (0.0, 1.05)], (186, 208, 158))
    for _ in range(5):  # reeds in clumps
        middle = rng.uniform(0, WIDE)
        for _ in range(4):
            x, h, lean = middle + rng.uniform(-0.05, 0.05), rng.uniform(0.1, 0.19), rng.uniform(-0.02, 0.02)
            pen.stroke([(x, 1.0), (x + lean, 1.0 - h)], (152, 178, 132), 0.01)
            pen.stroke([(x + lean * 0.7, 1.0 - h * 0.7), (x + lean, 1.0 - h)], (176, 150, 124), 0.021)
    for _ in range(4):  # lily pads
        x, y = rng.uniform(0, WIDE), rng.uniform(level + 0.24, 0.86)
        pen.shape(oval(x, y, 0.045, 0.015), (160, 196, 164))


def mountains(pen: Pen, rng: random.Random) -> None:
    """Draw ridges with snow."""
    level = rng.uniform(0.64, 0.72)
    _sky(pen, (208, 218, 238), (248, 238, 230), level)
    if rng.random() < 0.5:
        _sun(pen, rng, (255, 244, 214), 0.06)
    _clouds(pen, rng, 2, (246, 247, 252))
    for tone, low, high, wide in (((206, 210, 226), 0.36, 0.46, 0.36), ((178, 184, 206), 0.28, 0.44, 0.34)):
        x = rng.uniform(-0.1, 0.05)
        while x < WIDE + 0.1:
            h, w = rng.uniform(low, high), wide * rng.uniform(0.8, 1.1)
            peak, foot = (x, level - h), level + 0.08
            pen.shape([peak, (x + w * 0.8, foot), (x - w * 0.8, foot)], (tone, mix(tone, WHITE, 0.35)))
            shady = [peak, (x + w * 0.8, foot), (x + w * 0.15, foot), (x + w * 0.1, level - h * 0.5)]
            pen.shape(shady, mix(tone, (130, 136, 170), 0.28))
            k = 0.36  # the snow cap's share of the height
            reach = w * 0.8 * k * h / (h + 0.08)
            cap_y = level - h * (1 - k)
            zigzag = [(x + reach, cap_y), (x + reach * 0.45, cap_y - 0.035), (x + reach * 0.1, cap_y + 0.02)]
            pen.shape([peak, *zigzag, (x - reach * 0.4, cap_y - 0.03), (x - reach, cap_y)], (250, 251, 253))
            x += wide * rng.uniform(0.85, 1.25)
    pen.shape(_ridge(rng, level, 0.03), ((196, 212, 190), (204, 216, 184)))
    for _ in range(rng.randint(6, 10)):
        _fir(pen, rng.uniform(0, WIDE), level + rng.uniform(0.07, 0.1), rng.uniform(0.05, 0.08), (164, 188, 168))
    pen.shape(_ridge(rng, level + 0.11, 0.025), ((202, 216, 176), (184, 204, 156)))
    for _ in range(7):
        x, y, r = rng.uniform(0, WIDE), rng.uniform(level + 0.18, 0.98), rng.uniform(0.012, 0.024)
        pen.shape(oval(x, y, r * 1.5, r, 0, 180, 360), (198, 198, 200))


BACKGROUNDS: dict[str, Callable[[Pen, random.Random], None]] = {
    "beach": beach,
    "meadow": meadow,
    "desert": desert,
    "city": city,
    "snow": snow,
    "lake": lake,
    "mountains": mountains,
}


@lru_cache(maxsize=8 * len(BACKGROUNDS))
def panorama(background: str, layout: int, height: int) -> Image.Image:
    """One layout of a ground, `height` pixels high and `WIDE` times as wide (RGB). Kept; do not draw on it."""
    if background not in BACKGROUNDS:
        raise ValueError(f"background {background!r} is unknown; use one of {', '.join(BACKGROUNDS)}")
    image = Image.new("RGB", (round(height * WIDE), height), WHITE)
    BACKGROUNDS[background](Pen(image, height), random.Random(f"{background} {layout}"))
    return image


def ground(background: str, variation: int, side: int) -> Image.Image:
    """The window of `side` x `side` pixels that `variation` opens on its layout, mirrored for every other one (RGB)."""
    layout, window = variation % LAYOUTS, variation // LAYOUTS
    left = round(((window * 0.618034 + 0.3) % 1.0) * (WIDE - 1) * side)
    view = panorama(background, layout, side).crop((left, 0, left + side, side))
    return view.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if window % 2 else view
