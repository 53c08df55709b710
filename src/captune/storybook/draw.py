"""A storybook scene as a image: flat paper cut-outs with a dark contour on a light, hazy ground."""

from __future__ import annotations

from functools import lru_cache

from PIL import Image, ImageChops, ImageFilter

from captune.storybook.backgrounds import ground, panorama
from captune.storybook.palette import shades
from captune.storybook.pen import Pen
from captune.storybook.things import KINDS
from captune.storybook.world import KINDS as SUBKINDS
from captune.storybook.world import Scene

SIZES = {"big": 0.42, "small": 0.26}  # a thing's longer side, as a share of the image's
CONTOUR = 0.0105  # the contour's width, as a share of the image's side
MARGIN = 1.24  # a sprite's half-width in units of its thing's: room for the contour and the shadow


@lru_cache(maxsize=384)  # every thing at one image size
def sprite(kind: str, subkind: str | None, colour: str, size: str, side: int) -> Image.Image:
    """One thing for a image of `side` pixels: RGBA, square, with shading, contour and soft shadow. Kept."""
    if kind not in KINDS:
        raise ValueError(f"kind {kind!r} is unknown; use one of {', '.join(KINDS)}")
    if size not in SIZES:
        raise ValueError(f"size {size!r} of a {kind} is unknown; use 'big' or 'small'")
    known = SUBKINDS[kind] or (None,)
    if subkind not in known:
        raise ValueError(f"sub-kind {subkind!r} of a {kind} is unknown; use one of {known}")
    finer = 2 if side <= 400 else 1
    tones = shades(colour)
    unit = SIZES[size] / 2 * side * finer
    pixels = 2 * finer * round(unit * MARGIN / finer)
    contour = CONTOUR * side * finer
    paper = Image.new("RGBA", (pixels, pixels), (*tones.ink, 0))
    line = {"big": 0.7, "small": 0.5}[size] * contour / unit
    KINDS[kind](Pen(paper, unit, (pixels / 2, pixels / 2), ink=tones.ink, width=line), tones, subkind)

    shape = paper.getchannel("A")
    glow = Image.radial_gradient("L").resize((2 * pixels, 2 * pixels))  # 0 in the middle, 255 outside
    light = glow.crop((round(0.72 * pixels), round(0.8 * pixels), round(1.72 * pixels), round(1.8 * pixels)))
    strength = 0.2 if colour == "black" else 0.3
    shine = light.point(lambda v: round(max(0, 90 - v) * strength))
    shade = light.point(lambda v: round(max(0, v - 90) * 0.22))
    paper.paste((255, 255, 255, 255), mask=ImageChops.multiply(shape, shine))
    paper.paste((40, 30, 70, 255), mask=ImageChops.multiply(shape, shade))
    paper.putalpha(shape)

    wider = shape.filter(ImageFilter.GaussianBlur(contour)).point(lambda v: min(255, max(0, (v - 30) * 6)))
    rim = Image.new("RGBA", paper.size, (*tones.ink, 0))
    rim.putalpha(ImageChops.lighter(wider, shape))
    dim = ImageChops.offset(rim.getchannel("A"), round(0.6 * contour), round(1.5 * contour))
    card = Image.new("RGBA", paper.size, (58, 52, 84, 0))
    card.putalpha(dim.filter(ImageFilter.GaussianBlur(1.4 * contour)).point(lambda v: round(v * 0.3)))
    card.alpha_composite(rim)
    card.alpha_composite(paper)
    return card.reduce(finer) if finer > 1 else card


def draw(scene: Scene, size: int = 64) -> Image.Image:
    """The scene as an RGB image of `size` x `size` pixels; the same scene always gives the same bytes.

    Drawn four times as large (three times from 128 pixels up) and averaged down.
    Raises ValueError for a background, kind, sub-kind, colour or size that is not in the world.
    """
    zoom = 4 if size < 128 else 3
    side = zoom * size
    image = ground(scene.background, scene.variation, side)
    for thing in sorted(scene.things, key=lambda thing: thing.y):  # nearer things lie in front
        card = sprite(thing.kind, thing.subkind, thing.colour, thing.size, side)
        corner = (round(thing.x * side - card.width / 2), round(thing.y * side - card.height / 2))
        image.paste(card, corner, card)
    return image.reduce(zoom)


def clear_caches() -> None:
    """Forget the kept grounds and sprites (they are redrawn identically)."""
    panorama.cache_clear()
    sprite.cache_clear()
