"""The study's tables and charts, from the rows of its study.json."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from sdxl_optim.bench.charts import Point, Scatter
from sdxl_optim.settings import from_dict

Row = dict
MARK = r"<!-- study: {name} -->\n.*?<!-- end -->"
NEAR = 5e-5  # SSIM: what rounds to the same four digits


def of(rows: Sequence[Row], group: str) -> list[Row]:
    return [r for r in rows if r["group"] == group]


def table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in body)])


def percent(row: Row) -> str:
    return f"{100 * row['passes'] / row['prompts']:.0f} %"


def seconds(row: Row) -> str:
    return f"{1000 * sum(row['seconds'].values()):.1f}"


def _plain(rows: Sequence[Row], group: str) -> str:
    """A group's table: work and seconds against stock, likeness, caption check."""
    lpips = any(r["lpips"] is not None for r in rows)
    head = ["", "full + cached calls", "work", "ms a picture", "SSIM (least)", *["LPIPS"] * lpips, "caption check"]
    body = []
    for r in [*(s for s in of(rows, "stock") if s["name"] == "30 steps" and group != "stock"), *of(rows, group)]:
        likeness = f"{r['ssim']:.4f} ({r['ssim_least']:.3f})"
        name = "stock" if r["group"] == "stock" and r["cfg"] != 1 else r["name"]
        calls = f"{r['full']} + {r['cached']}"
        more = [f"{r['lpips']:.4f}"] * lpips if r["lpips"] is not None else ["–"] * lpips
        body.append([name, calls, f"{r['work']:.2f}", seconds(r), likeness, *more, percent(r)])
    return table(head, body)


def _steps(rows: Sequence[Row]) -> str:
    found = of(rows, "steps")
    most = max((r["gflop"] for r in found), default=1.0)
    head = ["steps", "work", "ms a picture", "SSIM to 50 steps (least)", "caption check"]
    return table(
        head,
        [
            [
                str(r["steps"]),
                f"{r['gflop'] / most:.2f}",
                seconds(r),
                f"{r['ssim']:.4f} ({r['ssim_least']:.3f})",
                percent(r),
            ]
            for r in found
        ],
    )


def _decoders(rows: Sequence[Row]) -> str:
    """The tiny VAE against the model's own, over the same latents."""
    body = []
    for name, r in (("the model's VAE", of(rows, "stock")), ("tiny VAE", of(rows, "tiny"))):
        if r:
            ms = 1000 * r[0]["seconds"]["decode"]
            body.append(
                [name, f"{r[0]['decoding']:.0f}", f"{ms:.2f}", f"{r[0]['ssim']:.4f} ({r[0]['ssim_least']:.3f})"]
            )
            body[-1].append(percent(r[0]))
    return table(["decoder", "GFLOP a picture", "ms a picture", "SSIM to the VAE's (least)", "caption check"], body)


def _interval(row: Row) -> int:
    return from_dict(row["settings"]).deepcache.cache_interval


def _mode(row: Row) -> str:
    return from_dict(row["settings"]).deepcache.mode


def modes(rows: Sequence[Row]) -> dict[tuple, dict[str, Row]]:
    """(sampler, steps, interval) -> row of each mode, for the settings of which all three are there."""
    out: dict[tuple, dict[str, Row]] = {}
    for r in of(rows, "mode"):
        out.setdefault((r["sampler"], r["steps"], _interval(r)), {})[_mode(r)] = r
    return {k: v for k, v in out.items() if len(v) == 3}


def _modes(rows: Sequence[Row]) -> str:
    body = []
    for (sampler, steps, interval), by in modes(rows).items():
        best = max(r["ssim"] for r in by.values())
        marked = [f"**{by[m]['ssim']:.4f}**" if by[m]["ssim"] == best else f"{by[m]['ssim']:.4f}" for m in by]
        checks = " / ".join(percent(r) for r in by.values())
        body.append([sampler, str(steps), str(interval), str(by["uniform"]["full"]), *marked, checks])
    return table(["sampler", "steps", "interval", "full", "uniform", "nonuniform", "adaptive", "caption check"], body)


def _verdict(rows: Sequence[Row]) -> str:
    """How adaptive does against the two others, counted."""
    found = list(modes(rows).values())
    parts = []
    for other in ("uniform", "nonuniform"):
        gains = [by["adaptive"]["ssim"] - by[other]["ssim"] for by in found]
        better, worse = sum(g > NEAR for g in gains), sum(g < -NEAR for g in gains)
        parts.append(
            f"nearer to the uncached picture than {other} in {better} of {len(found)} settings, farther in {worse}"
        )
    return f"At equal full calls, adaptive: {'; '.join(parts)}."


def _device(rows: Sequence[Row]) -> str:
    devices, prompts = sorted({r["device"] for r in rows}), sorted({str(r["prompts"]) for r in rows})
    return f"Device: {', '.join(devices)}; float32, {', '.join(prompts)} prompts a row."


TABLES: dict[str, Callable[[Sequence[Row]], str]] = {
    "device": _device,
    "steps": _steps,
    "modes": _modes,
    "verdict": _verdict,
    **{g: lambda rows, g=g: _plain(rows, g) for g in ("stock", "cutoff", "branch", "freeu", "together")},
    "tiny": _decoders,
}


def charts(rows: Sequence[Row]) -> dict[str, Scatter]:
    """By file name."""
    euler = [r for r in rows if r["steps"] == 30 and r["sampler"] == "euler" and r["group"] not in ("steps", "stock")]
    work = "the UNet's work, as a share of stock"

    def points(some: Sequence[Row], y: Callable[[Row], float], x: Callable[[Row], float] = lambda r: r["work"]):
        return [Point(_short(r), x(r), y(r)) for r in some]

    def likeness(row: Row) -> float:
        return row["ssim"]

    def passes(row: Row) -> float:
        return 100 * row["passes"] / row["prompts"]

    steps = of(rows, "steps")
    most = max((r["gflop"] for r in steps), default=1.0)
    cached = [r for r in of(rows, "mode") if r["steps"] == 30 and r["sampler"] == "euler"]
    named = ("SSIM to the stock picture", "caption check, %")
    return {
        "quality-all": Scatter("Likeness and work", work, named[0], points(euler, likeness), True),
        "quality-check": Scatter("Caption check and work", work, named[1], points(euler, passes), True),
        "quality-steps": Scatter(
            "Steps",
            "work, as a share of 50 steps",
            "SSIM to 50 steps",
            points(steps, likeness, lambda r: r["gflop"] / most),
        ),
        "quality-branch": Scatter(
            "DeepCache: interval and branch", work, named[0], points(of(rows, "branch"), likeness), True
        ),
        "quality-modes": Scatter(
            "DeepCache: where the full steps lie",
            "full steps of 30",
            named[0],
            points(cached, likeness, lambda r: r["full"]),
        ),
    }


def _short(row: Row) -> str:
    if row["group"] == "mode":
        return f"{_mode(row)}, interval {_interval(row)}"
    return f"{row['group']} {row['name']}" if row["group"] in ("cutoff", "freeu") else row["name"]


def write_charts(rows: Sequence[Row], folder: Path) -> None:
    """SVG files on white, which show on a dark page, too."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, chart in charts(rows).items():
        if chart.points:
            (folder / f"{name}.svg").write_text(chart.svg("white", "black"), "utf-8")


def fill(page: Path, rows: Sequence[Row]) -> None:
    """Put the tables between the page's marks, the rows into its JSON file, the charts into `images`, both beside it.

    A mark is `<!-- study: NAME -->`; what it holds ends at `<!-- end -->`.
    """
    text = page.read_text("utf-8")
    filled = {name: make(rows) for name, make in TABLES.items()}
    filled |= {name: f"![{chart.title}](images/{name}.svg)" for name, chart in charts(rows).items() if chart.points}
    for name, inside in filled.items():
        found = f"<!-- study: {name} -->\n{inside}\n<!-- end -->"
        text = re.sub(MARK.format(name=name), lambda _, found=found: found, text, flags=re.DOTALL)
    page.write_text(text, "utf-8")
    page.with_suffix(".json").write_text(json.dumps(rows, indent=1) + "\n", "utf-8")
    write_charts(rows, page.parent / "images")


def summary(rows: Sequence[Row]) -> str:
    """A few lines for the terminal."""
    lines = [f"{len(rows)} rows"]
    for group in ("stock", "tiny", "together"):
        lines += [
            f"{r['name']}: work {r['work']:.2f}, SSIM {r['ssim']:.4f}, caption check {percent(r)}"
            for r in of(rows, group)
        ]
    return "\n".join([*lines, *([_verdict(rows)] if modes(rows) else [])])
