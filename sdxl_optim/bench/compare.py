"""Two results side by side, case by case."""

from __future__ import annotations

from collections.abc import Sequence

from sdxl_optim.bench.quality import compare_all
from sdxl_optim.bench.report import MIB, markdown, summary, what_is_shared
from sdxl_optim.bench.results import Results, Row

HEADINGS = ("Settings", "A: seconds", "B: seconds", "B ÷ A", "A: MiB", "B: MiB", "A: SSIM", "B: SSIM")


def comparison(a: Results, b: Results) -> tuple[list[str], list[list[str]]]:
    """Headings and cells: every case of either result, by its name and group."""
    left, right = (_by_case(r) for r in (a, b))
    return list(HEADINGS), [_line(key, left.get(key), right.get(key)) for key in dict.fromkeys([*left, *right])]


def comparison_text(a: Results, b: Results) -> str:
    """The same as Markdown, with the conditions of both."""
    facts = [f"{name}: {r.folder.name} · {' '.join(what_is_shared(r.rows()))}" for name, r in (("A", a), ("B", b))]
    return "\n\n".join(facts) + "\n\n" + markdown(*comparison(a, b))


def _by_case(results: Results) -> dict[tuple, Row]:
    return {(row.case, row.group): row for row in summary(compare_all(results))}


def _line(key: tuple, a: Row | None, b: Row | None) -> list[str]:
    name = f"{key[0]} ({key[1]})" if key[1] else key[0]
    ratio = f"{b.seconds / a.seconds:.2f}" if a and b and a.seconds and b.seconds else "–"
    return [
        name,
        *_pair(a, b, "seconds", lambda v: f"{v:.2f}"),
        ratio,
        *_pair(a, b, "allocated_bytes", lambda v: f"{v / MIB:.0f}"),
        *_pair(a, b, "ssim", lambda v: f"{v:.4f}"),
    ]


def _pair(a: Row | None, b: Row | None, column: str, write) -> Sequence[str]:
    values = (getattr(row, column) if row else None for row in (a, b))
    return ["–" if v is None else write(v) for v in values]
