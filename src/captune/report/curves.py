"""Training curves as inline SVG, which follows the page's colours in light and dark."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from html import escape
from typing import Any

from captune.report.reading import Run, is_number
from captune.utils.wording import counted

WIDTH, HEIGHT = 340, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 10, 24
_POINTS = 300  # per line; more cannot be seen at this size and would swell the page
_MOST = 200  # plots in all
_FOREMOST = 9  # plots shown at once; the others can be unfolded
_MAIN = ("loss", "reward", "kl", "eval", "entropy", "cosine", "mean_length")
_SECONDARY = re.compile(r"learning_rate|grad_norm|epoch|time|per_second|num_tokens|clip_ratio|flos|std$")


@dataclass(frozen=True)
class Plot:
    """One quantity over the steps of all runs, drawn."""

    quantity: str
    svg: str
    main: bool
    note: str = ""


@dataclass(frozen=True)
class Series:
    """One quantity of one run: (step, value) by step."""

    run: int  # position of the run on the page: its colour and dash
    points: list[tuple[float, float]]
    broken: int = 0  # values that were not finite


def plots(runs: list[Run]) -> list[Plot]:
    """One plot per logged quantity, the runs overlaid; the quantities people look at first come first."""
    quantities: dict[str, list[Series]] = {}
    for position, run in enumerate(runs):
        for quantity, series in _series(run, position).items():
            quantities.setdefault(quantity, []).append(series)
    drawn: list[Plot] = []
    for quantity, lines in quantities.items():
        if len(drawn) == _MOST or all(len(line.points) < 2 for line in lines):
            continue
        broken = sum(line.broken for line in lines)
        note = f"{counted(broken, 'value')} not finite, left out" if broken else ""
        drawn.append(Plot(quantity, _svg(quantity, lines, runs), _order(quantity) < len(_MAIN), note))
    drawn.sort(key=lambda plot: (_order(plot.quantity), plot.quantity.count("/"), plot.quantity))
    return [replace(plot, main=plot.main and position < _FOREMOST) for position, plot in enumerate(drawn)]


def _order(quantity: str) -> int:
    name = quantity.lower()
    if _SECONDARY.search(name):
        return len(_MAIN)
    if name.startswith(("eval", "val")):
        return _MAIN.index("eval")
    return next((i for i, word in enumerate(_MAIN) if word in name), len(_MAIN))


def _series(run: Run, position: int) -> dict[str, Series]:
    logged: dict[str, dict[float, Any]] = {}
    for record in run.metrics:
        step = record.get("step")
        if not is_number(step):
            continue
        for key, value in record.items():
            if key != "step" and (value is None or isinstance(value, int | float)) and not isinstance(value, bool):
                logged.setdefault(key, {})[float(step)] = value  # a resumed run logs a step again: the last counts
    series = {}
    for key, values in logged.items():
        points = sorted((step, float(value)) for step, value in values.items() if is_number(value))
        series[key] = Series(position, points, len(values) - len(points))
    return series


def _thin(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    if len(points) <= _POINTS:
        return points
    stride = len(points) / _POINTS
    return [points[int(i * stride)] for i in range(_POINTS)] + [points[-1]]


def _smooth(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """A centred running mean over about a twentieth of the line."""
    half = max(1, len(points) // 40)
    window = [points[max(0, i - half) : i + half + 1] for i in range(len(points))]
    return [(points[i][0], sum(y for _, y in near) / len(near)) for i, near in enumerate(window)]


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers inside [low, high]."""
    raw = (high - low) / count
    if raw < 1e-300:
        return []
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    start = math.ceil(low / step - 1e-9)
    return [i * step for i in range(start, math.floor(high / step + 1e-9) + 1)]


def _number(value: float) -> str:
    if value == 0 or abs(value) < 1e-12:
        return "0"
    if abs(value) >= 10_000 or abs(value) < 0.001:
        return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value:.4g}"


def _svg(quantity: str, lines: list[Series], runs: list[Run]) -> str:
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points]
    x0, x1, y0, y1 = min(xs), max(xs), min(ys), max(ys)
    pad = (y1 - y0) * 0.06 or abs(y1) * 0.1 or 0.5
    y0, y1 = (y0 - pad, y1 + pad) if not (0 <= y0 < 0.25 * y1) else (0.0, y1 + pad)
    x1 = x1 if x1 > x0 else x0 + max(1.0, abs(x0) * 0.1)

    def at(x: float, y: float) -> str:
        right = _LEFT + (x - x0) / (x1 - x0) * (WIDTH - _LEFT - _RIGHT)
        down = _TOP + (y1 - y) / (y1 - y0) * (HEIGHT - _TOP - _BOTTOM)
        return f"{right:.1f},{down:.1f}"

    parts = []
    for y in ticks(y0, y1):
        down = float(at(x0, y).split(",")[1])
        parts.append(f'<path class="grid" d="M{_LEFT} {down}H{WIDTH - _RIGHT}"/>')
        parts.append(f'<text class="tick" x="{_LEFT - 7}" y="{down + 3.5:.1f}" text-anchor="end">{_number(y)}</text>')
    for x in ticks(x0, x1, 5):
        across = at(x, y0).split(",")[0]
        parts.append(f'<text class="tick" x="{across}" y="{HEIGHT - 7}" text-anchor="middle">{_number(x)}</text>')
    summary = []
    for line in lines:
        points = _thin(line.points)
        if not points:
            continue
        tone = f"s{line.run % 6}"
        if len(points) > 40:
            parts.append(f'<polyline class="raw {tone}" points="{" ".join(at(*p) for p in points)}"/>')
            points = _smooth(points)
        parts.append(f'<polyline class="curve {tone}" points="{" ".join(at(*p) for p in points)}"/>')
        last_x, last_y = at(*points[-1]).split(",")
        parts.append(f'<circle class="end {tone}" cx="{last_x}" cy="{last_y}" r="2.6"/>')
        start, end = line.points[0], line.points[-1]
        summary.append(
            f"{runs[line.run].name}: {_number(start[1])} at step {_number(start[0])}, "
            f"{_number(end[1])} at step {_number(end[0])}"
        )
    spoken = escape(f"{quantity} over training steps. " + "; ".join(summary), quote=True)
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{spoken}">{"".join(parts)}</svg>'
