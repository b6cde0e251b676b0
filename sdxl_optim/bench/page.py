"""A result as one self-contained HTML page: its own style and script, pictures inside, nothing fetched."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from sdxl_optim.bench.charts import Scatter
from sdxl_optim.bench.rendering import render

SIDE = 512  # pixels: pictures are shown no larger, and are shrunk to it


@dataclass(frozen=True)
class Picture:
    """A picture, its name and a line about it."""

    image: Image.Image
    name: str
    about: str = ""


@dataclass(frozen=True)
class Gallery:
    """Pictures side by side, as many in a line as there is room for."""

    title: str
    pictures: Sequence[Picture]
    note: str = ""


def page(
    title: str,
    intro: Sequence[str],
    headings: Sequence[str],
    cells: Sequence[Sequence[object]],
    note: str = "",
    words: Sequence[str] = (),
    charts: Sequence[Scatter] = (),
    galleries: Sequence[Gallery] = (),
    ran: Sequence[str] = (),
) -> str:
    """The whole document. intro: paragraphs. A cell that is None is shown as a dash. words: the headings of columns
    that go left. Raises ValueError for a row that is not as long as the headings."""
    shown: dict[str, object] = {"title": title, "intro": intro, "headings": headings, "note": note, "words": words}
    shown |= {"charts": charts, "galleries": galleries, "ran": ran, "data_uri": data_uri}
    return render("report.html.j2", rows=[list(zip(headings, row, strict=True)) for row in cells], **shown)


def data_uri(image: Image.Image) -> str:
    """The picture inside the page: at most SIDE pixels a side, as JPEG."""
    image = image.convert("RGB")
    image.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=92)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
