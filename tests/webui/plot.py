"""X/Y/Z plots on a live server, by API, and what they leave in the results folder."""

from __future__ import annotations

import itertools
import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sdxl_optim.bench.results import Results, Row, listed

from .client import Client, Picture, pixels

TITLE = "X/Y/Z plot"
PREFIX = "[SDXL Optim] "
NOTHING = ("Nothing", "")
# The script's other arguments by their labels, of which reForge has more: what is not False.
OTHERS = {
    "Draw legend": True, "Include Sub Images": True, "Use text inputs instead of dropdowns": True,
    "Grid margins (px)": 0, "Items per grid (0 = default), for sequential grid generation.": 0,
}  # fmt: skip


@dataclass
class Plot:
    """What came back: the plot, its cells in the host's order, and the seconds of the whole request."""

    grid: np.ndarray
    infotext: str
    cells: list[Picture]
    seconds: float


def plot(client: Client, x: tuple[str, str], y=NOTHING, z=NOTHING, script: dict | None = None, **request) -> Plot:
    """x, y, z: an axis' name and its values as text."""
    names = [argument["label"] for argument in _arguments(client)]
    axes = [axis for name, values in (x, y, z) for axis in (index_of(client, name), values, [])]
    args = [*axes, *(OTHERS.get(name, False) for name in names[len(axes) :])]
    body = {**request, "script_name": TITLE, "script_args": args, "save_images": False}
    if script is not None:
        body["alwayson_scripts"] = {"sdxl optim": {"args": [script]}}
    began = time.perf_counter()
    answer = client.post("/sdapi/v1/txt2img", **body)
    seconds = time.perf_counter() - began
    texts = json.loads(answer["info"])["infotexts"]
    count = len(answer["images"]) - 1
    cells = [Picture(pixels(i), t) for i, t in zip(answer["images"][1:], texts[-count:], strict=True)]
    return Plot(pixels(answer["images"][0]), texts[0], cells, seconds)


def index_of(client: Client, name: str) -> int:
    return _arguments(client)[0]["choices"].index(name)


def _arguments(client: Client) -> list[dict]:
    info = client.get("/sdapi/v1/script-info")
    return next(s for s in info if s["name"] == TITLE.lower() and not s["is_img2img"])["args"]


def values(axis: tuple[str, str]) -> list[str]:
    return [v.strip() for v in axis[1].split(",")] if axis != NOTHING else [""]


def in_order(x, y=NOTHING, z=NOTHING) -> list[dict[str, str]]:
    """The axis values of the cells, in the order in which they come back: x fastest."""
    names = [axis[0] for axis in (z, y, x)]
    cells = itertools.product(values(z), values(y), values(x))
    return [{n: v for n, v in zip(names, cell, strict=True) if n != "Nothing"} for cell in cells]


def results_of(webui) -> list[Results]:
    """The server's results, newest first."""
    return listed(results_folder(webui))


def results_folder(webui) -> Path:
    options = webui.client.get("/sdapi/v1/options")
    folder = Path(options["outdir_grids"] or options["outdir_txt2img_grids"])
    return (folder if folder.is_absolute() else webui.data / folder).parent / "sdxl-optim"


def row_of(rows: list[Row], axes: dict[str, str]) -> Row:
    return next(row for row in rows if row.axes == axes)
