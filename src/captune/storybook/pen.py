"""A small vector pen over Pillow: every shape is a filled polygon laid through a mask, flat or in a soft gradient."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from PIL import Image, ImageChops, ImageDraw

Colour = tuple[int, int, int]
Fill = Colour | tuple[Colour, Colour]  # one colour, or (top, bottom) of a vertical gradient
Point = tuple[float, float]


def mix(first: Colour, second: Colour, share: float) -> Colour:
    """`first` moved towards `second` by `share` in [0, 1]."""
    r, g, b = (round(p + (q - p) * share) for p, q in zip(first, second, strict=True))
    return r, g, b


def smooth(points: Sequence[Point], *, closed: bool = True, steps: int = 8) -> list[Point]:
    """A Catmull-Rom curve through `points`, as a polyline with `steps` pieces per span."""
    count = len(points)
    spans = count if closed else count - 1
    curve: list[Point] = []
    for i in range(spans):
        if closed:
            p0, p1, p2, p3 = (points[(i + k) % count] for k in (-1, 0, 1, 2))
        else:
            p0, p1, p2, p3 = (points[min(max(i + k, 0), count - 1)] for k in (-1, 0, 1, 2))
        for step in range(steps):
            t = step / steps
            weights = (
                -0.5 * t + t * t - 0.5 * t**3,
                1 - 2.5 * t * t + 1.5 * t**3,
                0.5 * t + 2 * t * t - 1.5 * t**3,
                -0.5 * t * t + 0.5 * t**3,
            )
            curve.append(
                (
                    sum(w * p[0] for w, p in zip(weights, (p0, p1, p2, p3), strict=True)),
                    sum(w * p[1] for w, p in zip(weights, (p0, p1, p2, p3), strict=True)),
                )
            )
    if not closed:
        curve.append(points[-1])
    return curve


def bend(start: Point, control: Point, end: Point, steps: int = 12) -> list[Point]:
    """A quadratic Bézier curve from `start` to `end`, pulled towards `control`."""
    curve = []
    for step in range(steps + 1):
        t = step / steps
        a, b, c = (1 - t) ** 2, 2 * t * (1 - t), t * t
        x, y = (a * p + b * q + c * r for p, q, r in zip(start, control, end, strict=True))
        curve.append((x, y))
    return curve


def oval(
    x: float, y: float, rx: float, ry: float, turn: float = 0.0, start: float = 0, end: float = 360
) -> list[Point]:
    """An ellipse about (x, y), turned by `turn` degrees; only the arc from `start` to `end` degrees if asked."""
    steps = 48
    cos, sin = math.cos(math.radians(turn)), math.sin(math.radians(turn))
    points = []
    for step in range(steps + 1):
        angle = math.radians(start + (end - start) * step / steps)
        dx, dy = rx * math.cos(angle), ry * math.sin(angle)
        points.append((x + dx * cos - dy * sin, y + dx * sin + dy * cos))
    return points


def box(left: float, top: float, right: float, bottom: float, radius: float = 0.0) -> list[Point]:
    """A rectangle, with rounded corners if `radius` > 0."""
    if not radius:
        return [(left, top), (right, top), (right, bottom), (left, bottom)]
    points: list[Point] = []
    corners = ((right, bottom, 0), (left, bottom, 90), (left, top, 180), (right, top, 270))
    for x, y, angle in corners:
        cx = x - radius if x == right else x + radius
        cy = y - radius if y == bottom else y + radius
        points += oval(cx, cy, radius, radius, 0, angle, angle + 90)[::6]
    return points


def leaf(start: Point, end: Point, width: float) -> list[Point]:
    """A pointed leaf from `start` to `end`, `width` wide in the middle."""
    (x0, y0), (x1, y1) = start, end
    length = math.hypot(x1 - x0, y1 - y0)
    nx, ny = -(y1 - y0) / length * width, (x1 - x0) / length * width
    middle = ((x0 + x1) / 2, (y0 + y1) / 2)
    there = bend(start, (middle[0] + nx, middle[1] + ny), end)
    return there + bend(end, (middle[0] - nx, middle[1] - ny), start)


class Pen:
    """Draws on `image` in units of `scale` pixels about `origin` (pixels), turned by `turn` degrees.

    `ink` and `width` (units) are the colour and width of inner contours (`edge=True`).
    """

    def __init__(
        self,
        image: Image.Image,
        scale: float,
        origin: Point = (0.0, 0.0),
        *,
        ink: Colour = (60, 60, 70),
        width: float = 0.05,
    ) -> None:
        self.image, self.scale, self.origin, self.ink, self.width = image, scale, origin, ink, width
        self.turn = 0.0
        self._clip: Image.Image | None = None

    def _pixels(self, points: Sequence[Point]) -> list[Point]:
        cos, sin = math.cos(math.radians(self.turn)), math.sin(math.radians(self.turn))
        (ox, oy), s = self.origin, self.scale
        return [(ox + s * (x * cos - y * sin), oy + s * (x * sin + y * cos)) for x, y in points]

    def _lay(self, pixels: Sequence[Point], fill: Fill, line: float | None, closed: bool, strength: float) -> None:
        """Fill the polygon `pixels`, or stroke it when `line` (a width in pixels) is given."""
        pad = 2 + (line or 0)
        left = max(0, math.floor(min(p[0] for p in pixels) - pad))
        top = max(0, math.floor(min(p[1] for p in pixels) - pad))
        right = min(self.image.width, math.ceil(max(p[0] for p in pixels) + pad))
        bottom = min(self.image.height, math.ceil(max(p[1] for p in pixels) + pad))
        if right <= left or bottom <= top:
            return
        mask = Image.new("L", (right - left, bottom - top), 0)
        brush = ImageDraw.Draw(mask)
        moved = [(x - left, y - top) for x, y in pixels]
        opacity = round(255 * strength)
        if line is None:
            brush.polygon(moved, fill=opacity)
        else:
            path = moved + moved[:2] if closed else moved
            brush.line(path, fill=opacity, width=max(1, round(line)), joint="curve")
            if not closed:
                half = line / 2
                for x, y in (moved[0], moved[-1]):
                    brush.ellipse((x - half, y - half, x + half, y + half), fill=opacity)
        if self._clip is not None:
            mask = ImageChops.multiply(mask, self._clip.crop((left, top, right, bottom)))
        if isinstance(fill[0], tuple):
            first, second = fill
            ramp = Image.linear_gradient("L").resize(mask.size)
            paint = Image.composite(Image.new("RGB", mask.size, second), Image.new("RGB", mask.size, first), ramp)
        else:
            paint = Image.new("RGB", mask.size, fill)
        if self.image.mode == "RGBA":
            paint.putalpha(255)
        self.image.paste(paint, (left, top), mask)

    def shape(self, points: Sequence[Point], fill: Fill, *, edge: bool = False, strength: float = 1.0) -> None:
        """A filled polygon; `edge` adds a contour in ink; `strength` is its opacity."""
        pixels = self._pixels(points)
        self._lay(pixels, fill, None, True, strength)
        if edge:
            self._lay(pixels, self.ink, self.width * self.scale, True, strength)

    def stroke(self, points: Sequence[Point], fill: Fill, width: float, *, strength: float = 1.0) -> None:
        """An open line with round ends, `width` units wide."""
        self._lay(self._pixels(points), fill, width * self.scale, False, strength)

    @contextmanager
    def within(self, points: Sequence[Point]) -> Iterator[None]:
        """Everything drawn in this context stays inside the polygon `points`."""
        before = self._clip
        clip = Image.new("L", self.image.size, 0)
        ImageDraw.Draw(clip).polygon(self._pixels(points), fill=255)
        self._clip = clip if before is None else ImageChops.multiply(clip, before)
        try:
            yield
        finally:
            self._clip = before
