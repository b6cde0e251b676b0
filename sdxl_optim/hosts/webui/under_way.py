"""The runs that are sampling at present, and how to find the one that a call belongs to."""

from __future__ import annotations

from collections.abc import Callable

from sdxl_optim.hosts.webui.measure import measurement_of
from sdxl_optim.run import Run

RUN = "sdxl_optim_run"  # the attribute of the sampler under which its run is found
active: list[Run] = []  # innermost last; one, but for scripts that generate inside a generation


def run_of(denoiser) -> Run | None:
    """The run that this CFGDenoiser's calls belong to."""
    run = getattr(getattr(denoiser, "sampler", None), RUN, None)
    if run is None and active:  # somebody samples inside a generation of ours, out of our sight
        active[-1].step = None
    return run


def count_stock(denoiser, rows: Callable[[], int]) -> None:
    """A call outside any run: where its request is measured, the rows that it puts through the UNet are counted."""
    p = getattr(denoiser, "p", None)
    measurement = measurement_of(p) if p is not None else None
    if measurement is not None:
        measurement.count(rows())
