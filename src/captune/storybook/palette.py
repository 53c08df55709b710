"""The eight colours of the storybook world and the tones that go with them."""

from __future__ import annotations

from dataclasses import dataclass

from captune.storybook.pen import Colour, mix

PALETTE: dict[str, Colour] = {
    "red": (217, 56, 52),
    "orange": (244, 138, 38),
    "yellow": (253, 218, 66),
    "green": (62, 158, 84),
    "blue": (48, 112, 210),
    "purple": (140, 76, 184),
    "white": (252, 250, 245),
    "black": (46, 46, 54),
}
CREAM, BROWN, TAUPE = (250, 240, 220), (142, 108, 84), (122, 104, 98)
SAGE, SLATE, PANE = (132, 142, 112), (84, 84, 92), (218, 230, 236)


@dataclass(frozen=True)
class Shades:
    """A thing's colour and its companions: a deeper tone, a contrasting detail, and the contour's ink."""

    body: Colour
    deep: Colour
    detail: Colour
    ink: Colour


def shades(colour: str) -> Shades:
    """The tones of one of the eight colours; ValueError for any other."""
    if colour not in PALETTE:
        raise ValueError(f"colour {colour!r} is unknown; use one of {', '.join(PALETTE)}")
    body = PALETTE[colour]
    deep, detail, ink = mix(body, (40, 30, 70), 0.2), mix(body, (255, 250, 238), 0.8), mix(body, (30, 24, 50), 0.62)
    if colour == "white":
        deep, detail, ink = (226, 226, 232), (142, 144, 158), (104, 102, 118)
    elif colour == "black":
        deep, detail, ink = (72, 72, 84), (184, 184, 192), (18, 18, 26)
    elif colour == "yellow":
        deep, detail, ink = (240, 196, 52), (146, 112, 52), (128, 98, 40)
    return Shades(body, deep, detail, ink)
