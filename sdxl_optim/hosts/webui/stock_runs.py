"""How long stock runs took, so that later runs can be compared with them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from modules import shared
from sdxl_optim.hosts.webui import request
from sdxl_optim.hosts.webui.observers import RequestObserver
from sdxl_optim.report import Comparison


@dataclass(frozen=True)
class Reference:
    seconds: float
    steps: int
    sampler: str


class StockRuns:
    """The last stock run of each checkpoint and size that came to its end."""

    def __init__(self):
        self._last: dict[tuple, Reference] = {}

    def begins(self, p) -> None:
        """A stock run of the request `p` begins."""
        request.attach(p).stock_clock = StockClock(self._keep)

    def _keep(self, p, seconds: float) -> None:
        self._last[_key(p)] = Reference(seconds, p.steps, p.sampler_name)

    def compared(self, p, seconds: float) -> Comparison | None:
        """Where there is a stock run of the request's checkpoint and size."""
        reference = self._last.get(_key(p))
        if reference is None or _cut_short():
            return None
        return Comparison(seconds, reference.seconds, reference.steps, reference.sampler)


class StockClock(RequestObserver):
    """Measures one stock run, all of whose pictures are made."""

    def __init__(self, keep: Callable[[Any, float], None]):
        """keep: takes the request and its seconds."""
        self._keep = keep
        self._started = time.perf_counter()
        self._skipped = False

    def decode_ends(self, p) -> None:
        self._skipped |= shared.state.skipped  # which the host forgets by the next batch

    def ends(self, p, processed) -> None:
        request.attach(p).stock_clock = None
        if not self._skipped and not _cut_short():
            self._keep(p, time.perf_counter() - self._started)


def _cut_short() -> bool:
    """Whether it is not all batches, or not all of one, that were made."""
    state = shared.state
    return state.interrupted or state.skipped or getattr(state, "stopping_generation", False)


def _key(p) -> tuple:
    again = (p.hr_upscale_to_x, p.hr_upscale_to_y) if getattr(p, "enable_hr", False) else None
    upscaled = getattr(p, "firstpass_image", None) is not None  # by the gallery's ✨: the hires pass alone
    size = (p.width, p.height, again, upscaled, p.batch_size, p.n_iter)
    return (shared.opts.sd_model_checkpoint, hasattr(p, "init_images"), *size)
