"""An X/Y/Z plot under way: every cell measured, the stock pictures to compare with, numbers drawn, the report
written."""

from __future__ import annotations

import math
import re
from copy import copy
from pathlib import Path

from PIL import Image, ImageDraw

from modules import images
from modules.processing import process_images
from modules.shared import opts, state
from sdxl_optim.bench.report import REPORT, in_short, write_report
from sdxl_optim.bench.results import Results, Row
from sdxl_optim.hosts.webui import options, request
from sdxl_optim.hosts.webui.job import log
from sdxl_optim.hosts.webui.measure import Measurer
from sdxl_optim.hosts.webui.xyz import PREFIX
from sdxl_optim.settings import Settings
from sdxl_optim.settings.overrides import OFF, runs_nothing

NOTHING = "Nothing"
CELL = re.compile(r"(\d+) out of (\d+)")  # how the host numbers a cell in state.job


def results_folder() -> Path:
    """Where this extension keeps its results: the folder in the settings, or beside the host's own grids."""
    if options.chosen(options.FOLDER).strip():
        return Path(options.chosen(options.FOLDER).strip()).resolve()
    return Path(opts.outdir_grids or opts.outdir_txt2img_grids).resolve().parent / "sdxl-optim"


class Grid:
    """One plot. Its cells are known by the host's own count of them, its pictures by identity."""

    def __init__(self, axes: tuple, measurer: Measurer):
        self._measurer = measurer
        self.axes = axes  # the host's AxisInfo of x, y and z
        self.results = Results.create(results_folder(), "xyz", title="X/Y/Z plot", axes=self._about())
        self.finished = False
        self._first_seed: int | None = None
        self._pristine: dict[str, object] = {}  # group → the request before anything was done with it
        self._made: list[tuple[Image.Image, Row]] = []

    def _about(self) -> dict[str, list[str]]:
        return {a.axis.label: [str(v) for v in a.values] for a in self.axes if a.axis.label != NOTHING}

    def begin_cell(self, p, settings: Settings, values: dict[str, str]) -> None:
        """values: the cell's, by axis."""
        if self._first_seed is None:
            self._first_seed = p.seed
        others = [f"{name}: {value}" for name, value in values.items() if not name.startswith(PREFIX)]
        group = ", ".join([*others, *([f"seed {p.seed}"] if p.seed != self._first_seed else [])])
        ours = [f"{n.removeprefix(PREFIX)} {v}" for n, v in values.items() if n.startswith(PREFIX) and v != OFF]
        stock = runs_nothing(settings)
        case = "stock" if stock else " + ".join(ours) or OFF
        self._pristine.setdefault(group, _pristine(p))
        facts = {"case": case, "axes": values, "group": group, "stock": stock}
        self._measurer.begin(p, self._keep, **facts)

    def _keep(self, row: Row, processed) -> None:
        if processed.images:
            self._made.append((processed.images[0], self._append(row, processed)))

    def _append(self, row: Row, processed) -> Row:
        return self.results.append(row, processed.images[0], processed.infotexts[0])

    # --- when all cells are made

    def has(self, image) -> bool:
        return any(image is one for one, _ in self._made)

    def finish(self) -> None:
        """Make what is missing to compare with, and write the report."""
        self.finished = True
        if options.chosen(options.REFERENCE):
            self._make_references()
        self._pristine.clear()
        rows = write_report(self.results)
        by_key = {row.key: row for row in rows}
        self._made = [(image, by_key.get(row.key, row)) for image, row in self._made]
        log.info("X/Y/Z report: %s", self.results.folder / REPORT)

    def _make_references(self) -> None:
        has_stock = {row.group for _, row in self._made if row.stock}
        for group in dict.fromkeys(row.group for _, row in self._made):
            if group in has_stock or state.interrupted or state.stopping_generation:
                continue
            p = self._pristine[group]
            request.attach(p).is_reference = True
            facts = {"case": "stock", "group": group, "stock": True}
            self._measurer.begin(p, self._append, **facts)
            process_images(p)

    def drawn(self, image: Image.Image) -> Image.Image:
        """The plot's own copy of a cell, with its numbers; the cell is done with."""
        row = next((row for one, row in self._made if one is image), None)
        self._made = [(one, row) for one, row in self._made if one is not image]
        if row is None or not options.chosen(options.NUMBERS):
            return image
        return with_text(image, in_short(row))


def _pristine(p):
    """A copy of a request that has not begun, and shares nothing with it that the host changes."""
    copied = copy(p)
    copied.override_settings = dict(p.override_settings)
    copied.extra_generation_params = dict(p.extra_generation_params)
    copied.styles = list(p.styles)
    copied.do_not_save_samples = copied.do_not_save_grid = True
    return copied


class Plots:
    """The plot under way, or the last one."""

    def __init__(self, measurer: Measurer):
        self._measurer = measurer
        self._current: Grid | None = None

    def begin_cell(self, p, settings: Settings) -> None:
        """Measure the request `p` if it is a cell of a plot with an axis of ours."""
        own = request.attach(p)
        if own.is_reference or own.measurement is not None or own.inside_measured:
            return
        if not _is_cell(p) or not options.chosen(options.MEASURE):
            return
        axes = (state.xyz_plot_x, state.xyz_plot_y, state.xyz_plot_z)
        if not any(a.axis.label.startswith(PREFIX) for a in axes):
            return
        try:
            values = _values(axes)
            if self._current is None or self._current.axes[0] is not axes[0]:
                self._current = Grid(axes, self._measurer)
            self._current.begin_cell(p, settings, values)
        except (OSError, ValueError) as error:  # the cell itself goes on
            log.warning("this cell is not measured (%s: %s)", type(error).__name__, error)

    def on_image_grid(self, params) -> None:
        """The host is about to put pictures together: into a plot of ours once all of its cells are made."""
        grid = self._current
        if grid is None or not any(map(grid.has, params.imgs)):
            return
        if not grid.finished:
            grid.finish()
        params.imgs = [grid.drawn(image) for image in params.imgs]


def _values(axes: tuple) -> dict[str, str]:
    """The cell's value of each axis. The host numbers the cells x fastest, then y, then z. Raises ValueError where it
    does not: reForge can make a plot in parts, and its cells without a plot."""
    found = CELL.fullmatch(state.job or "")
    if found is None or int(found[2]) != math.prod(len(axis.values) for axis in axes):
        raise ValueError("the host does not tell which cell of the plot this is")
    index, values = int(found[1]) - 1, {}
    for axis in axes:
        index, k = divmod(index, len(axis.values))
        if axis.axis.label != NOTHING:
            values[axis.axis.label] = str(axis.values[k])
    return values


def _is_cell(p) -> bool:
    """Whether the script that was chosen for this request is X/Y/Z plot, which makes nothing but cells."""
    selected = p.script_args[0] if p.scripts is not None and p.script_args else 0
    if not isinstance(selected, int) or not 0 < selected <= len(p.scripts.selectable_scripts):
        return False
    return type(p.scripts.selectable_scripts[selected - 1]).__module__ == "xyz_grid.py"


def with_text(image: Image.Image, text: str) -> Image.Image:
    """A copy of the picture with the text on a dark band at its foot."""
    copied = image.convert("RGB")
    size = max(10, image.width // 18)
    font, draw = images.get_font(size), ImageDraw.Draw(copied, "RGBA")
    lines = text.split(", ")
    while len(lines) > 1 and draw.textlength(", ".join(lines[:2]), font=font) < image.width - size:
        lines[:2] = [", ".join(lines[:2])]
    top = image.height - int(size * (1.25 * len(lines) + 0.3))
    draw.rectangle((0, top, image.width, image.height), fill=(0, 0, 0, 150))
    for k, line in enumerate(lines):
        draw.text((size // 2, top + int(size * 1.25 * k)), line, font=font, fill=(255, 255, 255))
    return copied
