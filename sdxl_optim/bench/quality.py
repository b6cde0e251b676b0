"""How near a picture is to its reference."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from sdxl_optim.bench.perceptual import lpips, missing
from sdxl_optim.bench.results import Results, Row

OTHER_SIZE = "another size than the reference, so not compared"


def similarity(reference, picture) -> float | None:
    """SSIM of two 8-bit pictures [H, W, 3] of one size, 1 where they are equal; None without scikit-image."""
    try:
        from skimage.metrics import structural_similarity
    except ImportError:
        return None
    return float(structural_similarity(np.asarray(reference), np.asarray(picture), channel_axis=2))


def mad(reference, picture) -> float:
    """Mean absolute difference of two pictures [H, W, 3] of one size, 0 to 255."""
    return float(np.abs(_array(reference) - _array(picture)).mean())


def psnr(reference, picture) -> float:
    """Peak signal-to-noise ratio in dB of two 8-bit pictures [H, W, 3] of one size; inf where they are equal."""
    error = float(np.square(_array(reference) - _array(picture)).mean())
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def _array(picture) -> np.ndarray:
    return np.asarray(picture, dtype=np.float64)


def compared(row: Row, reference_file: str, reference, picture) -> Row:
    """The row with its quality numbers. Pictures of two sizes can't be compared and are noted."""
    if reference.size != picture.size:
        said = row.notes.removesuffix(OTHER_SIZE).removesuffix("; ")
        return dataclasses.replace(row, notes=_join(said, OTHER_SIZE))
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
    """All rows of a result with their quality numbers; what is there already is not computed again.

    LPIPS is added where it has come to hand since.
    """
    rows = results.rows() if rows is None else rows
    references = {row.group: row.picture for row in reversed(rows) if row.stock and row.picture}
    return [_with_quality(results, row, references.get(row.group)) for row in rows]


def _with_quality(results: Results, row: Row, reference_file: str | None) -> Row:
    complete = row.mad is not None and (row.lpips is not None or missing())
    if complete or not row.picture or not reference_file:
        return row
    reference, picture = results.picture(reference_file), results.picture(row.picture)
    return row if reference is None or picture is None else compared(row, reference_file, reference, picture)
