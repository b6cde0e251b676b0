"""Scatter charts as inline SVG: nothing to fetch, readable in the WebUI and in a saved page, on light and on dark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from sdxl_optim.bench.rendering import render

WIDTH, HEIGHT = 640, 360
LEFT, RIGHT, TOP, BOTTOM = 64, 20, 16, 48
LONGEST_NAME = 34


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

    def svg(self, paper: str = "transparent", ink: str = "currentColor") -> str:
        """Colours as CSS has them; these leave both to the page that the chart stands in."""
        xs = _Axis([p.x for p in self.points], LEFT, WIDTH - RIGHT)
        ys = _Axis([p.y for p in self.points], HEIGHT - BOTTOM, TOP)
        front = pareto_front(self.points) if self.front else []
        names = _names([(p.name, xs.at(p.x), ys.at(p.y)) for p in sorted(self.points, key=lambda p: p not in front)])
        shown = {"chart": self, "front": front, "xs": xs, "ys": ys, "names": names}
        return render("chart.svg.j2", **shown, width=WIDTH, height=HEIGHT, paper=paper, ink=ink)


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
        self.ticks = [k * step for k in range(math.floor(least / step), math.ceil(most / step) + 1)]
        self.low, self.high = low, high
        self._digits = max(0, -math.floor(math.log10(step)))

    def at(self, value: float) -> float:
        first, last = self.ticks[0], self.ticks[-1]
        return self.low + (value - first) / (last - first) * (self.high - self.low)

    def text(self, tick: float) -> str:
        return f"{tick:.{self._digits}f}"


@dataclass(frozen=True)
class _Name:
    text: str
    x: float
    y: float
    anchor: str  # the end of the text that is at x

    def covers(self, other: _Name) -> bool:
        (a, b), (c, d) = self._span(), other._span()
        return a < d and c < b and abs(self.y - other.y) < 12

    def _span(self) -> tuple[float, float]:
        width = 6 * len(self.text)
        return (self.x - width, self.x) if self.anchor == "end" else (self.x, self.x + width)


def _names(points: Sequence[tuple[str, float, float]]) -> list[_Name]:
    """Beside their points, those that would cover an earlier one left out (they show under the mouse)."""
    names: list[_Name] = []
    for text, x, y in points:
        text = text if len(text) <= LONGEST_NAME else text[: LONGEST_NAME - 1] + "…"
        name = _Name(text, x - 8, y, "end") if x > WIDTH * 0.6 else _Name(text, x + 8, y, "start")
        if not any(map(name.covers, names)):
            names.append(name)
    return names
