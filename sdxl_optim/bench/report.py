"""A result's rows → report.html, results.csv, results.json and table.md beside them."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Any

from sdxl_optim.bench import perceptual
from sdxl_optim.bench.charts import Point, Scatter
from sdxl_optim.bench.page import Gallery, Picture, page
from sdxl_optim.bench.quality import compare_all
from sdxl_optim.bench.results import Results, Row, write_csv, write_json
from sdxl_optim.wording import Text

log = logging.getLogger("sdxl_optim")

REPORT, CSV, JSON, MARKDOWN = "report.html", "results.csv", "results.json", "table.md"
FILES = (REPORT, CSV, JSON, MARKDOWN)
MIB = 2**20
MAX_PICTURES = 400  # in one page

# Heading → how a row's cell is written. A column that is empty in every row is left out.
SHOWN = {
    "Settings": lambda r: r.case,
    "Group": lambda r: r.group,
    "Pictures": lambda r: str(r.runs) if r.runs > 1 else "",
    "Steps": lambda r: _text(r.steps),
    "Seconds": lambda r: _text(r.seconds, 2),
    "Speed": lambda r: "",  # against the group's stock row
    "First run": lambda r: _text(r.first_seconds, 2),
    "Sampling": lambda r: _text(r.sampling_seconds, 2),
    "Decode": lambda r: _text(r.decode_seconds, 3),
    "it/s": lambda r: _text(r.its, 2),
    "Allocated MiB": lambda r: _text(_mib(r.allocated_bytes)),
    "Reserved MiB": lambda r: _text(_mib(r.reserved_bytes)),
    "Process MiB": lambda r: _text(_mib(r.process_bytes)),
    "Full + cached": lambda r: "" if r.full is None else f"{r.full} + {r.cached}",
    "Rows": lambda r: "" if r.rows is None else f"{r.rows} of {r.stock_rows}",
    "Decoder": lambda r: r.decoder,
    "SSIM": lambda r: _text(r.ssim, 4),
    "PSNR dB": lambda r: _text(r.psnr, 2),
    "MAD": lambda r: _text(r.mad, 2),
    "LPIPS": lambda r: _text(r.lpips, 4),
    "As prompted": lambda r: "" if r.as_prompted is None else f"{r.as_prompted:.0%}",
    "Notes": lambda r: r.notes,
}
SHARED = ("Steps", "Decoder")  # not a column where it is the same in all rows: it stands above the table
WORDS = ("Settings", "Group", "Decoder", "Notes")
MEANS = ("seconds", "first_seconds", "sampling_seconds", "decode_seconds", "its", "ssim", "psnr", "mad", "lpips",
         "as_prompted")  # fmt: skip
GREATEST = ("allocated_bytes", "reserved_bytes", "process_bytes")


def write_report(results: Results) -> list[Row]:
    """Complete the rows with their quality numbers and write all files. Returns the rows.

    A file that can't be written, as a spreadsheet holds it, is as it was before: the log says so, and the others are
    written.
    """
    before = results.rows()
    rows = compare_all(results, before)
    if rows != before:
        results.replace(rows)
    means = summary(rows)
    facts = "".join(f"{line}\n\n" for line in what_is_shared(rows))
    writing = {
        CSV: lambda path: write_csv(rows, path),
        JSON: lambda path: write_json(rows, path),
        MARKDOWN: lambda path: path.write_text(facts + markdown(*table_of(means)), "utf-8"),
        REPORT: lambda path: path.write_text(_page(results, rows, means), "utf-8"),
    }
    for name, write in writing.items():
        try:
            write(results.folder / name)
        except OSError as error:
            log.warning("%s can't be written (%s); the result's other files are", results.folder / name, error)
    return rows


def summary(rows: Iterable[Row]) -> list[Row]:
    """One row a case: the mean over its prompts and runs. A plot's groups are not prompts, and stay."""
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        if row.group == row.prompt:
            row = dataclasses.replace(row, group="")
        groups.setdefault((row.case, tuple(row.axes.items()), row.group), []).append(row)
    return [group[0] if len(group) == 1 else _mean(group) for group in groups.values()]


def _mean(group: list[Row]) -> Row:
    values: dict[str, Any] = {}
    for name in (*MEANS, *GREATEST):
        known = [v for row in group if (v := getattr(row, name)) is not None]
        values[name] = None if not known else max(known) if name in GREATEST else fmean(known)
    notes = "; ".join(dict.fromkeys(r.notes for r in group if r.notes))
    runs = sum(r.runs for r in group if r.seconds is not None) or 1
    return dataclasses.replace(
        group[0], **values, notes=notes, runs=runs, group="", prompt="", picture="", reference=""
    )


def table_of(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Headings and cells for people."""
    cells = [[write(row) for write in SHOWN.values()] for row in rows]
    speed = list(SHOWN).index("Speed")
    for row, line in zip(rows, cells, strict=True):
        line[speed] = _speed(row, rows)
    names = list(SHOWN)
    used = [k for k, name in enumerate(names) if len({line[k] for line in cells} - {""}) > (name in SHARED)]
    return [names[k] for k in used], [[line[k] or "–" for k in used] for line in cells]


def _speed(row: Row, rows: Sequence[Row]) -> str:
    stock = next((r.seconds for r in rows if r.stock and r.seconds and r.group == row.group), None)
    return f"{stock / row.seconds:.2f}×" if stock and row.seconds else ""


def markdown(headings: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """A table to paste into an issue."""
    rule = ["---" if h in WORDS else "--:" for h in headings]
    lines = [headings, rule, *cells]
    return "".join("| " + " | ".join(str(c).replace("|", "\\|") for c in line) + " |\n" for line in lines)


def charts(rows: Sequence[Row]) -> list[Scatter]:
    """Seconds against quality with the Pareto front, and seconds against memory."""
    timed = [(r, r.seconds) for r in rows if r.seconds is not None]
    similar = [Point(_name(r), seconds, r.ssim) for r, seconds in timed if r.ssim is not None]
    quality = Scatter("Time and similarity", "seconds a picture", "SSIM to stock", similar, front=True)
    if not similar:
        differing = [Point(_name(r), seconds, -r.mad) for r, seconds in timed if r.mad is not None]
        quality = Scatter("Time and similarity", "seconds a picture", "− mean difference", differing, front=True)
    memory = [
        Point(_name(r), seconds, r.allocated_bytes / MIB) for r, seconds in timed if r.allocated_bytes is not None
    ]
    return [
        chart
        for chart in (quality, Scatter("Time and memory", "seconds a picture", "peak allocated MiB", memory))
        if chart.points
    ]


def what_is_missing(rows: Sequence[Row]) -> list[Text]:
    """What these numbers lack, in a sentence each."""
    compared = [r for r in rows if r.mad is not None]
    missing: list[Text] = []
    if not compared and rows:
        missing.append("Nothing was compared: there is no stock picture of the same prompt and size.")
    if compared and all(r.ssim is None for r in compared):
        missing.append("SSIM is missing: it takes scikit-image (pip install scikit-image).")
    if compared and all(r.lpips is None for r in compared):
        missing.append(perceptual.missing() or "LPIPS is missing: it could not be computed of these pictures.")
    if rows and all(r.allocated_bytes is None and r.process_bytes is None for r in rows):
        missing.append("Peak memory is missing: it is measured on CUDA alone.")
    return missing


def _page(results: Results, rows: list[Row], means: list[Row]) -> str:
    headings, cells = table_of(means)
    intro = [*filter(None, [results.about().get("note")]), *what_is_shared(rows)]
    note = " ".join(["Click on a heading to sort.", *map(str, what_is_missing(rows))])
    galleries = _galleries(results, rows)
    return page(_title(results), intro, headings, cells, note, WORDS, charts(means), galleries, what_ran(rows))


def _title(results: Results) -> str:
    return f"SDXL Optim: {results.about().get('title') or results.folder.name}"


def what_is_shared(rows: Sequence[Row]) -> list[str]:
    """The conditions: what is the same in most rows, as a paragraph."""
    facts = {
        "Device": lambda r: r.device,
        "torch": lambda r: r.torch,
        "Host": lambda r: r.host,
        "Checkpoint": lambda r: r.checkpoint,
        "Sampler": lambda r: " ".join(filter(None, (r.sampler, r.scheduler))),
        "Size": lambda r: f"{r.width}×{r.height}" if r.width else "",
        "Steps": lambda r: _text(r.steps),
        "CFG scale": lambda r: _text(r.cfg, 1),
        "Seed": lambda r: _text(r.seed),
        "Decoder": lambda r: r.decoder,
    }
    parts = []
    for name, write in facts.items():
        values = list(dict.fromkeys(v for r in rows if (v := write(r))))
        if values:
            parts.append(f"{name}: {', '.join(values[:6])}{', …' if len(values) > 6 else ''}")
    return [" · ".join(parts)] if parts else []


def _galleries(results: Results, rows: Sequence[Row]) -> list[Gallery]:
    """A group's pictures, with its prompt where the result keeps the prompts' texts."""
    galleries: dict[str, list[Picture]] = {}
    shown = [r for r in rows if r.run == 1 and r.picture][:MAX_PICTURES]
    for row in shown:
        picture = results.picture(row.picture)
        if picture is not None:
            name = f"{row.prompt}, seed {row.seed}" if row.group == row.prompt and row.prompt else row.group
            galleries.setdefault(name or row.prompt, []).append(Picture(picture, row.case, in_short(row)))
    texts = {f"{p['name']}, seed {p['seed']}": p["text"] for p in results.about().get("prompts", [])}
    return [Gallery(name or "Pictures", pictures, texts.get(name, "")) for name, pictures in galleries.items()]


def what_ran(rows: Sequence[Row]) -> list[str]:
    """A line a case, of its first row that ran."""
    first: dict[str, str] = {}
    for row in rows:
        if row.ran:
            first.setdefault(row.case, f"{row.case}: {row.ran}")
    return list(first.values())


def in_short(row: Row) -> str:
    """A cell's numbers on a line or two."""
    parts = [f"{row.seconds:.2f} s"] if row.seconds is not None else []
    if row.allocated_bytes is not None:
        parts.append(f"{row.allocated_bytes / MIB:.0f} MiB")
    if row.stock:
        parts.append("stock")
    elif row.ssim is not None:
        parts.append(f"SSIM {row.ssim:.3f}")
    elif row.psnr is not None:
        parts.append(f"PSNR {row.psnr:.1f} dB")
    if row.as_prompted is not None:
        parts.append("as prompted" if row.as_prompted == 1 else "not as prompted")
    return ", ".join(parts)


def _name(row: Row) -> str:
    return f"{row.case} ({row.group})" if row.axes and row.group else row.case


def _text(value: float | None, digits: int = 0) -> str:
    if value is None:
        return ""
    return "inf" if value == math.inf else f"{value:.{digits}f}" if isinstance(value, float) else str(value)


def _mib(value: int | None) -> int | None:
    return None if value is None else round(value / MIB)
