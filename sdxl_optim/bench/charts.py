"""Scatter charts as inline SVG, which fetches nothing and takes its ink from the page that it stands in."""

from __future__ import annotations

import importlib.util
import io
import re
import threading
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 8.0, 4.5  # matplotlib's inches, of which one is 72 units of the SVG
INK = "#010203"  # drawn with; the page's own colour is put in its place
BLUE, ORANGE = "#3b7dd8", "#d9622b"
LONGEST_NAME = 34
_one_at_a_time = threading.Lock()  # matplotlib's options are the process's


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
        """Each point is a group of the class "point" with its name and values as its title, which shows under the
        mouse."""
        from matplotlib import rc_context

        options = {"svg.fonttype": "none", "svg.hashsalt": self.title}  # text as text, the same names each time
        with _one_at_a_time, rc_context(options), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing")  # by which it measures; the page's font has them
            svg = _plain(_drawn(self))
        for k, p in enumerate(self.points):
            title = f'<g class="point"><title>{escape(p.name)}: {p.x:.3g}, {p.y:.3g}</title>'
            svg = svg.replace(f'<g id="point-{k}">', title)
        style = f"font-family:system-ui,sans-serif;max-width:100%;height:auto;background:{paper};color:{ink}"
        return svg.replace("<svg ", f'<svg role="img" style="{style}" ', 1)


def can_be_drawn() -> bool:
    return importlib.util.find_spec("matplotlib") is not None


def pareto_front(points: Sequence[Point]) -> list[Point]:
    """The points that no other beats in both: from left to right, each one higher than those before."""
    front: list[Point] = []
    for p in sorted(points, key=lambda p: (p.x, -p.y)):
        if not front or p.y > front[-1].y:
            front.append(p)
    return front


def _drawn(chart: Scatter):
    from matplotlib.figure import Figure  # takes a second, which only a chart pays

    figure = Figure((WIDTH, HEIGHT), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(chart.x_label, color=INK)
    axes.set_ylabel(chart.y_label, color=INK)
    axes.tick_params(colors=INK, length=0)
    axes.grid(color=INK, alpha=0.15, clip_on=False)
    axes.spines[:].set_visible(False)
    axes.set_axisbelow(True)
    best = pareto_front(chart.points) if chart.front else []
    axes.plot([p.x for p in best], [p.y for p in best], color=ORANGE, clip_on=False)
    for k, p in enumerate(chart.points):
        axes.plot(p.x, p.y, "o", color=ORANGE if p in best else BLUE, alpha=0.85, clip_on=False, gid=f"point-{k}")
    figure.draw_without_rendering()  # places the axes, by which the names are placed
    _write_names(axes, [*best, *(p for p in chart.points if p not in best)])
    return figure


def _write_names(axes, points: Sequence[Point]) -> None:
    """Beside the points; a name that would cover an earlier one is left out."""
    taken, (low, high) = [], axes.get_xlim()
    for p in points:
        name = p.name if len(p.name) <= LONGEST_NAME else p.name[: LONGEST_NAME - 1] + "…"
        left = p.x > low + 0.6 * (high - low)
        place = {"xytext": (-8 if left else 8, 0), "ha": "right" if left else "left", "va": "center"}
        text = axes.annotate(
            name, (p.x, p.y), textcoords="offset points", color=INK, fontsize=9, parse_math=False, **place
        )
        text.set_in_layout(False)
        box = text.get_window_extent()
        if any(box.overlaps(other) for other in taken):
            text.remove()
        else:
            taken.append(box)


def _plain(figure) -> str:
    """The SVG element, to stand in a page beside others: no style of its own that would reach them, no names but those
    that are referred to, the page's ink and font."""
    file = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    svg = file.getvalue()
    svg = svg[svg.index("<svg ") :].replace(INK, "currentColor")
    svg = re.sub(r"\s*<defs>\s*<style.*?</style>\s*</defs>", "", svg, count=1, flags=re.DOTALL)
    svg = re.sub(r' id="[a-z.0-9]+_\d+"', "", svg)
    return re.sub(r"font-family: [^;\"]*;? ?", "", svg)
