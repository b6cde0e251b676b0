"""Rows of measurements and where they are kept: one folder a result, a line of JSON a row, pictures as PNG beside."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import os
import shutil
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sdxl_optim.files import write_atomically
from sdxl_optim.report import JobReport
from sdxl_optim.sampling.loop import Counts
from sdxl_optim.sentences import report_lines

ROWS, ABOUT, PICTURES = "rows.jsonl", "about.json", "pictures"


def _column(doc: str, default: Any = None, **more):
    kind = {"default_factory": default} if callable(default) else {"default": default}
    return field(metadata={"doc": doc}, **kind, **more)


@dataclass(frozen=True)
class Row:
    """One measured picture, or the mean of several (`runs` of them). None: not known here. Columns are stable: new
    ones go to the end."""

    case: str = _column("Name of the settings: a combination, an optimisation, or the cell's axis values.", "")
    axes: dict[str, str] = _column("X/Y/Z axis → the cell's value.", dict)
    group: str = _column("Rows of one group are compared with the stock row of that group.", "")
    stock: bool = _column("Whether none of this extension's techniques was on.", False)
    prompt: str = _column("The prompt's name, or its text.", "")
    run: int = _column("Number of the repetition, from 1.", 1)
    runs: int = _column("How many pictures the numbers are the mean of (memory: the greatest).", 1)
    host: str = _column("WebUI or diffusers, with its version.", "")
    device: str = _column("GPU or CPU.", "")
    torch: str = _column("Version of torch.", "")
    checkpoint: str = _column("Model.", "")
    sampler: str = _column("Sampler.", "")
    scheduler: str = _column("Schedule type.", "")
    width: int | None = _column("Pixels.")
    height: int | None = _column("Pixels.")
    steps: int | None = _column("Sampling steps asked for.")
    cfg: float | None = _column("CFG scale.")
    seed: int | None = _column("Seed.")
    batch: int | None = _column("Pictures made at once.")
    seconds: float | None = _column("The whole request, from its beginning until its pictures are ready.")
    first_seconds: float | None = _column("The same of the first run, with what it compiles and loads.")
    sampling_seconds: float | None = _column("Of these, in the sampler's loops.")
    decode_seconds: float | None = _column("Of these, in the last VAE decode.")
    its: float | None = _column("Iterations a second: UNet evaluations of the sampler ÷ sampling_seconds.")
    allocated_bytes: int | None = _column("Peak of GPU memory in use by torch; None on the CPU.")
    reserved_bytes: int | None = _column("Peak of GPU memory that torch took from the driver; None on the CPU.")
    calls: int | None = _column("Evaluations of the model by the sampler.")
    full: int | None = _column("UNet calls computed in full.")
    cached: int | None = _column("UNet calls that DeepCache shortened.")
    rows: int | None = _column("Rows (cond and uncond) through the UNet.")
    stock_rows: int | None = _column("Rows that a stock run computes.")
    decoder: str = _column("What made the picture of the latents.", "")
    ssim: float | None = _column("Structural similarity to the reference; 1 is equal. Takes scikit-image.")
    psnr: float | None = _column("Peak signal-to-noise ratio to the reference in dB; inf is equal.")
    mad: float | None = _column("Mean absolute difference to the reference, of 255.")
    lpips: float | None = _column("Perceptual distance (AlexNet); None where lpips or its weights are not at hand.")
    picture: str = _column("The picture's file, beside the rows.", "")
    reference: str = _column("The file it was compared with.", "")
    notes: str = _column("What was refused or could not run, and why.", "")
    process_bytes: int | None = _column("Peak of the process's memory, by the command line on the CPU; None on a GPU.")
    as_prompted: float | None = _column("Share of pictures that show what the prompt says; of the demo model alone.")
    ran: str = _column("What ran, and how often: the report of the run.", "")

    @classmethod
    def of(
        cls,
        report: JobReport | None,
        counts: Counts,
        seconds: float,
        sampling: float | None,
        decode: float | None,
        **facts,
    ) -> Row:
        """A request's row. report: None where nothing of this extension ran, whose UNet calls nobody then told apart.

        counts: the sampler's. seconds, sampling, decode: the whole request's, its loops' and its last decode's.
        facts: the columns that the host knows, which go before what is found here.
        """
        found: dict[str, Any] = {
            "torch": version("torch"),
            "seconds": seconds,
            "sampling_seconds": sampling,
            "decode_seconds": decode,
            "its": counts.calls / sampling if counts.calls and sampling else None,
            "calls": counts.calls,
            "rows": counts.rows,
            "stock_rows": counts.stock_rows,
        }
        if report is not None:
            found |= {"full": counts.full, "cached": counts.cached, "decoder": report.decoder or ""}
            found |= {
                "notes": "; ".join(map(str, report.all_notes())),
                "ran": "; ".join(map(str, report_lines(report))),
            }
        return cls(**(found | facts))

    @property
    def key(self) -> tuple:
        """What tells one measurement from another in a result."""
        return self.case, tuple(self.axes.items()), self.group, self.prompt, self.run


COLUMNS = tuple(f.name for f in dataclasses.fields(Row))


def to_dict(row: Row) -> dict:
    """Plain data, strict JSON: an infinite PSNR is the word inf."""
    return {k: "inf" if v == math.inf else v for k, v in dataclasses.asdict(row).items()}


def from_dict(data: dict) -> Row:
    """A row from `to_dict`'s data; what a newer version may have added is left out."""
    values: dict[str, Any] = {k: math.inf if data[k] == "inf" else data[k] for k in COLUMNS if k in data}
    return Row(**values)


class Results:
    """The folder of one result. A row that `append` has taken survives the death of the process."""

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        self._pictures: int | None = None  # the last one's number

    @classmethod
    def create(cls, parent: Path, kind: str, **about) -> Results:
        """A new folder in `parent`, named by time and kind. about: what was asked for, as plain data."""
        stamp = time.strftime("%Y%m%d-%H%M%S")
        for k in range(1, 1000):
            folder = Path(parent, f"{stamp}-{kind}" + (f"-{k}" if k > 1 else ""))
            try:
                folder.mkdir(parents=True)
            except FileExistsError:
                continue
            return cls.opened(folder, kind=kind, **about)
        raise FileExistsError(f"{parent} is full of results of this second")

    @classmethod
    def opened(cls, folder: Path, **about) -> Results:
        """The result in `folder`, begun there if there is none."""
        folder.mkdir(parents=True, exist_ok=True)
        results = cls(folder)
        if not (folder / ABOUT).exists():
            write_atomically(folder / ABOUT, json.dumps({"made": time.strftime("%Y-%m-%d %H:%M"), **about}, indent=1))
        return results

    @classmethod
    def restarted(cls, folder: Path, kind: str, **about) -> Results:
        """A new result in `folder`; an earlier one of this kind is deleted there, with nothing but what it wrote.

        Raises ValueError where another result is.
        """
        earlier = cls(folder)
        if earlier.about().get("kind", kind) != kind or (earlier.rows() and not earlier.about()):
            raise ValueError(f"{folder} holds another result")
        files = [earlier.folder / PICTURES / row.picture for row in earlier.rows() if row.picture]
        for file in (*files, earlier.folder / ROWS, earlier.folder / ABOUT):
            file.unlink(missing_ok=True)
        return cls.opened(folder, kind=kind, **about)

    def about(self) -> dict:
        try:
            return json.loads((self.folder / ABOUT).read_text("utf-8"))
        except (OSError, ValueError):
            return {}

    def rows(self) -> list[Row]:
        """All rows, in the order of their making. A last line that was torn by the process's death is left out."""
        try:
            lines = (self.folder / ROWS).read_text("utf-8").split("\n")  # a prompt may hold other ends of lines
        except FileNotFoundError:
            return []
        rows = []
        for line in lines:
            try:
                rows.append(from_dict(json.loads(line)))
            except (ValueError, TypeError):
                continue
        return rows

    def append(self, row: Row, picture: Image.Image | None = None, infotext: str = "") -> Row:
        """Keep a row and its picture; returns the row with the picture's file name."""
        path = self.folder / ROWS
        if picture is not None:
            row = dataclasses.replace(row, picture=self._save(picture, infotext))
        with path.open("a+b") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                torn = file.read(1) != b"\n"
                file.write(b"\n" if torn else b"")
            file.write(json.dumps(to_dict(row), ensure_ascii=False).encode() + b"\n")
            file.flush()
        return row

    def replace(self, rows: Sequence[Row]) -> None:
        """Put these rows in the place of all rows."""
        write_atomically(self.folder / ROWS, "".join(json.dumps(to_dict(r), ensure_ascii=False) + "\n" for r in rows))

    def picture(self, name: str) -> Image.Image | None:
        try:
            with Image.open(self.folder / PICTURES / name) as image:
                return image.convert("RGB")
        except (OSError, ValueError):
            return None

    def delete(self) -> None:
        """The whole folder. Raises ValueError where it holds no result."""
        if not (self.folder / ABOUT).is_file():
            raise ValueError(f"{self.folder} holds no result")
        shutil.rmtree(self.folder)

    def _save(self, picture: Image.Image, infotext: str) -> str:
        folder = self.folder / PICTURES
        folder.mkdir(exist_ok=True)
        if self._pictures is None:
            names = [*(p.name for p in folder.glob("*.png")), *(row.picture for row in self.rows())]
            self._pictures = max((int(stem) for n in names if (stem := n.removesuffix(".png")).isdigit()), default=0)
        self._pictures += 1
        text = PngInfo()
        if infotext:
            text.add_text("parameters", infotext)
        buffer = io.BytesIO()
        picture.save(buffer, "PNG", pnginfo=text)
        name = f"{self._pictures:04}.png"
        write_atomically(folder / name, buffer.getvalue())
        return name


def listed(parent: Path) -> list[Results]:
    """The results in a folder, newest first."""
    folders = (p.parent for p in Path(parent).glob(f"*/{ABOUT}"))
    return [Results(folder) for folder in sorted(folders, key=lambda f: f.name, reverse=True)]


# --- for others to read


def write_csv(rows: Iterable[Row], path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for row in rows:
            data = to_dict(row)
            writer.writerow({**data, "axes": json.dumps(data["axes"], ensure_ascii=False)})


def write_json(rows: Iterable[Row], path: Path) -> None:
    write_atomically(path, json.dumps([to_dict(row) for row in rows], indent=1, ensure_ascii=False))
