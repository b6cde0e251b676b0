"""Scatter charts as inline SVG: nothing to install, nothing to fetch, readable in the WebUI and in a saved page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 640, 360
LEFT, RIGHT, TOP, BOTTOM = 64, 20, 16, 48
STYLE = (
    "font:12px system-ui,sans-serif;max-width:100%;height:auto;background:transparent;color:currentColor;display:block"
)


@dataclass(frozen=True)
class Point:
    name: str
    x: float
    y: float


@dataclass(frozen=True)
class Scatter:
    """Points over two axes. front: draw the Pareto front, where x is better the smaller and y the greater."""

    title: str
    x_label: str
    y_label: str
    points: Sequence[Point]
    front: bool = False

    def html(self) -> str:
        return f"<h2>{escape(self.title)}</h2>\n<div class='wide'>{self.svg()}</div>" if self.points else ""

    def svg(self) -> str:
        xs, ys = (
            _Axis([p.x for p in self.points], LEFT, WIDTH - RIGHT),
            _Axis([p.y for p in self.points], HEIGHT - BOTTOM, TOP),
        )
        best = pareto_front(self.points) if self.front else []
        parts = [*_grid(xs, ys), _axis_names(self.x_label, self.y_label)]
        if len(best) > 1:
            line = " ".join(f"{xs.at(p.x):.1f},{ys.at(p.y):.1f}" for p in best)
            parts.append(f'<polyline points="{line}" fill="none" stroke="#d9622b" stroke-width="1.5"/>')
        parts += [_circle(p, xs.at(p.x), ys.at(p.y), p in best) for p in self.points]
        names = _Names()
        parts += [
            names.write(p.name, xs.at(p.x), ys.at(p.y)) for p in [*best, *(p for p in self.points if p not in best)]
        ]
        size = f'viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}"'
        return f'<svg xmlns="http://www.w3.org/2000/svg" {size} style="{STYLE}" role="img">{"".join(parts)}</svg>'


def pareto_front(points: Sequence[Point]) -> list[Point]:
    """The points that no other beats in both: from left to right, each one higher than those before."""
    front: list[Point] = []
    for p in sorted(points, key=lambda p: (p.x, -p.y)):
        if not front or p.y > front[-1].y:
            front.append(p)
    return front


class _Axis:
    """A range with round ticks, and where on the drawing (from `low` to `high` pixels) a value lies."""

    def __init__(self, values: Sequence[float], low: float, high: float):
        least, most = min(values), max(values)
        if least == most:
            least, most = least - abs(least) * 0.1 - 0.01, most + abs(most) * 0.1 + 0.01
        step = 10 ** math.floor(math.log10((most - least) / 4))
        step = next(step * k for k in (1, 2, 5, 10) if (most - least) / (step * k) <= 6)
        first, last = math.floor(least / step), math.ceil(most / step)
        self.ticks = [k * step for k in range(first, last + 1)]
        self.digits = max(0, -math.floor(math.log10(step)))
        self._low, self._high = low, high

    def at(self, value: float) -> float:
        first, last = self.ticks[0], self.ticks[-1]
        return self._low + (value - first) / (last - first) * (self._high - self._low)


def _grid(xs: _Axis, ys: _Axis) -> list[str]:
    line = '<line x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}" stroke="currentColor" stroke-opacity=".15"/>'
    text = '<text x="{:.1f}" y="{:.1f}" text-anchor="{}" fill="currentColor" fill-opacity=".7">{:.{}f}</text>'
    parts = []
    for tick in xs.ticks:
        parts.append(line.format(xs.at(tick), TOP, xs.at(tick), HEIGHT - BOTTOM))
        parts.append(text.format(xs.at(tick), HEIGHT - BOTTOM + 16, "middle", tick, xs.digits))
    for tick in ys.ticks:
        parts.append(line.format(LEFT, ys.at(tick), WIDTH - RIGHT, ys.at(tick)))
        parts.append(text.format(LEFT - 6, ys.at(tick) + 4, "end", tick, ys.digits))
    return parts


def _axis_names(x: str, y: str) -> str:
    across, down = (LEFT + WIDTH - RIGHT) / 2, (TOP + HEIGHT - BOTTOM) / 2
    text = '<text transform="translate({} {}) rotate({})" text-anchor="middle" fill="currentColor">{}</text>'
    return text.format(across, HEIGHT - 10, 0, escape(x)) + text.format(14, down, -90, escape(y))


def _circle(p: Point, x: float, y: float, best: bool) -> str:
    colour = "#d9622b" if best else "#3b7dd8"
    title = f"<title>{escape(p.name)}: {p.x:.3g}, {p.y:.3g}</title>"
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" fill="{colour}" fill-opacity=".85">{title}</circle>'


class _Names:
    """Writes names beside points, those that would cover another left out (they show under the mouse)."""

    def __init__(self):
        self._taken: list[tuple[float, float, float, float]] = []

    def write(self, name: str, x: float, y: float) -> str:
        name = name if len(name) <= 34 else name[:33] + "…"
        width, left = 6 * len(name), x > WIDTH * 0.6
        x = x - 8 if left else x + 8
        box = (x - width if left else x, y - 6, x if left else x + width, y + 6)
        if any(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in self._taken):
            return ""
        self._taken.append(box)
        anchor = "end" if left else "start"
        place = f'x="{x:.1f}" y="{y + 4:.1f}" text-anchor="{anchor}"'
        return f'<text {place} fill="currentColor" font-size="11">{escape(name)}</text>'
