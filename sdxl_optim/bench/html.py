"""Rows and pictures → one self-contained HTML page: its own style, pictures inside, nothing fetched."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from PIL import Image

SIDE = 512  # pixels: pictures are shown no larger, and are shrunk to it

STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --soft: #5d636b; --line: #dcdfe3; --paper: #fff; --band:
#f4f5f7; } @media (prefers-color-scheme: dark) {
  :root { --ink: #e6e7e9; --soft: #a0a6ae; --line: #3a3e44; --paper: #17191c; --band: #202327; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1400px; padding: 24px; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 26px; line-height: 1.2; margin: 0 0 8px; }
h2 { font-size: 19px; margin: 36px 0 8px; }
p { margin: 0 0 10px; max-width: 80ch; }
.soft, figcaption span { color: var(--soft); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: 6px 10px; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top; }
th { font-weight: 600; }
td { white-space: nowrap; }
td.text { white-space: normal; min-width: 20ch; }
th:first-child, td:first-child, .text { text-align: left; }
tbody tr:nth-child(odd) { background: var(--band); }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(170px, 1fr)); gap: 14px; }
figure { margin: 0; }
figure img { display: block; width: 100%; height: auto; border-radius: 4px; background: var(--band); }
figcaption { margin-top: 4px; font-size: 13px; line-height: 1.35; }
figcaption b, figcaption span { display: block; }
@media (max-width: 900px) { body { padding: 16px; } table { font-size: 13px; } th, td { padding: 5px 7px; } }
ul { margin: 0; padding-left: 20px; }
code { font: 13px/1.4 ui-monospace, Consolas, monospace; }
"""


@dataclass(frozen=True)
class Table:
    """A cell is text, a number or None (shown as a dash); floats are written by `digits`. Columns in `text`
    go left.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    note: str = ""
    text: Sequence[str] = ()
    digits: int = 2

    def html(self) -> str:
        kinds = [' class="text"' if c in self.text else "" for c in self.columns]
        head = "".join(f"<th{k}>{escape(c)}</th>" for c, k in zip(self.columns, kinds, strict=True))
        body = "".join(f"<tr>{self._cells(row, kinds)}</tr>\n" for row in self.rows)
        table = f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table></div>'
        return _heading(self.title) + _paragraph(self.note, soft=True) + table

    def _cells(self, row: Sequence[object], kinds: list[str]) -> str:
        return "".join(f"<td{k}>{escape(self._text(cell))}</td>" for cell, k in zip(row, kinds, strict=True))

    def _text(self, cell: object) -> str:
        if cell is None:
            return "–"
        return f"{cell:.{self.digits}f}" if isinstance(cell, float) else str(cell)


@dataclass(frozen=True)
class Picture:
    """A picture, its name and a line about it."""

    image: Image.Image
    name: str
    about: str = ""

    def html(self) -> str:
        about = f"<span>{escape(self.about)}</span>" if self.about else ""
        caption = f"<figcaption><b>{escape(self.name)}</b>{about}</figcaption>"
        return f'<figure><img src="{data_uri(self.image)}" alt="{escape(self.name)}">{caption}</figure>\n'


@dataclass(frozen=True)
class Pictures:
    """Pictures side by side, as many in a line as there is room for."""

    title: str
    pictures: Sequence[Picture]
    note: str = ""

    def html(self) -> str:
        grid = f'<div class="pictures">\n{"".join(p.html() for p in self.pictures)}</div>'
        return _heading(self.title) + _paragraph(self.note, soft=True) + grid


@dataclass(frozen=True)
class Lines:
    """A list of lines, as a program printed them."""

    title: str
    lines: Sequence[str]

    def html(self) -> str:
        items = "".join(f"<li><code>{escape(line)}</code></li>\n" for line in self.lines)
        return f"{_heading(self.title)}<ul>\n{items}</ul>"


def page(title: str, intro: Sequence[str], sections: Sequence[Table | Pictures | Lines]) -> str:
    """The whole document. `intro` is a list of paragraphs."""
    body = "\n".join([f"<h1>{escape(title)}</h1>", *map(_paragraph, intro), *(s.html() for s in sections)])
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def data_uri(image: Image.Image) -> str:
    """The picture inside the page: at most SIDE pixels a side, as JPEG."""
    image = image.convert("RGB")
    image.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=92)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _heading(text: str) -> str:
    return f"<h2>{escape(text)}</h2>\n" if text else ""


def _paragraph(text: str, soft: bool = False) -> str:
    if not text:
        return ""
    return f'<p class="soft">{escape(text)}</p>\n' if soft else f"<p>{escape(text)}</p>\n"
