"""How near a picture is to its reference."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sdxl_optim.bench.measure import similarity
from sdxl_optim.bench.results import Results, Row


def mad(reference, picture) -> float:
    """Mean absolute difference of two pictures [H, W, 3] of one size, 0 to 255."""
    return float(np.abs(_array(reference) - _array(picture)).mean())


def psnr(reference, picture) -> float:
    """Peak signal-to-noise ratio in dB of two 8-bit pictures [H, W, 3] of one size; inf where they are equal."""
    error = float(np.square(_array(reference) - _array(picture)).mean())
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def _array(picture) -> np.ndarray:
    return np.asarray(picture, dtype=np.float64)


def lpips(reference, picture) -> float | None:
    """LPIPS (arXiv:1801.03924) with AlexNet; None where the package or its weights are not at hand."""
    import torch

    network = _lpips_network()
    if network is None:
        return None
    tensors = [torch.from_numpy(_array(p)).permute(2, 0, 1)[None].float() / 127.5 - 1 for p in (reference, picture)]
    with torch.no_grad():
        return float(network(*tensors))


@functools.cache
def _lpips_network():
    import torch

    if not list(Path(torch.hub.get_dir(), "checkpoints").glob("alexnet-*.pth")):
        return None  # the package would fetch them
    try:
        import lpips as package
    except ImportError:
        return None
    return package.LPIPS(net="alex", verbose=False).eval()


def compared(row: Row, reference_file: str, reference, picture) -> Row:
    """The row with its quality numbers. Pictures of two sizes can't be compared and are noted."""
    if reference.size != picture.size:
        return dataclasses.replace(row, notes=_join(row.notes, "another size than the reference, so not compared"))
    return dataclasses.replace(
        row,
        reference=reference_file,
        ssim=similarity(reference, picture),
        psnr=psnr(reference, picture),
        mad=mad(reference, picture),
        lpips=lpips(reference, picture),
    )


def _join(*texts: str) -> str:
    return "; ".join(t for t in texts if t)


def compare_all(results: Results, rows: Sequence[Row] | None = None) -> list[Row]:
    """All rows of a result with their quality numbers; what is there already is not computed again."""
    rows = results.rows() if rows is None else rows
    references = {row.group: row.picture for row in reversed(rows) if row.stock and row.picture}
    return [_with_quality(results, row, references.get(row.group)) for row in rows]


def _with_quality(results: Results, row: Row, reference_file: str | None) -> Row:
    if row.mad is not None or not row.picture or not reference_file:
        return row
    reference, picture = results.picture(reference_file), results.picture(row.picture)
    return row if reference is None or picture is None else compared(row, reference_file, reference, picture)
