"""When a stored deep feature serves a call: the one rule, for the run and for its prediction. No torch."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

from sdxl_optim.sampling.loop import StepPlan


@dataclass(frozen=True)
class Stored:
    """What is known of a stored deep feature, besides the tensor. cond_at: where its cond rows begin."""

    rows: int
    model: int
    shape: tuple = ()
    cond_at: int = 0


def usable_rows(stored: Stored | None, rows: int, cond_rows: int, model: int, shape: tuple = ()) -> int | None:
    """How many of the stored rows serve a call of `rows` rows, or None where they can't.

    A call that computes only the cond rows takes those of the store. Anything else must match exactly.
    `shape` is all else that must be equal: height, width, dtype and device.
    """
    if stored is None or stored.model != model or stored.shape != shape:
        return None
    if stored.rows == rows:
        return rows
    return rows if rows == cond_rows < stored.rows else None


class Forecast:
    """The store of a pass without its tensors: tells before the run which of its calls are cached."""

    def __init__(self, key: str):
        self._key = key
        self._entries: dict[Hashable, Stored] = {}

    def cached(self, step: StepPlan, place: Hashable, rows: int, cond_rows: int, model: int) -> bool:
        """Whether the next UNet call, of so many rows, reuses what is stored for its place."""
        stored = self._entries.get(place)
        if self._key in step and usable_rows(stored, rows, cond_rows, model) is not None:
            return True
        self._entries[place] = Stored(rows, model)
        return False
