"""The one attribute that the extension keeps on a request of the host's, a StableDiffusionProcessing `p`."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdxl_optim.settings import FieldPath

if TYPE_CHECKING:
    from sdxl_optim.hosts.webui.job import Job
    from sdxl_optim.hosts.webui.measure import Measurement
    from sdxl_optim.hosts.webui.observers import RequestObserver
    from sdxl_optim.hosts.webui.stock_runs import StockClock
    from sdxl_optim.wording import Text

ATTRIBUTE = "sdxl_optim"


@dataclass
class Request:
    """What is known of one request.

    Scripts copy a request with all of its attributes and generate from the copy. What holds for the copies too comes
    first; everything below belongs to the owner alone.
    """

    owner: weakref.ref
    overrides: Mapping[FieldPath, Any] = field(default_factory=dict)  # of an X/Y/Z plot's cell
    is_reference: bool = False  # the stock picture that a plot is compared with
    inside_measured: bool = False  # a copy of one that is measured, by which its pictures are part of that

    job: Job | None = None  # while process_images runs with the extension on
    measurement: Measurement | None = None
    stock_clock: StockClock | None = None  # of a stock run
    loop_awaited: ExitStack | None = None  # undone when the sampler's loop begins
    decoders: dict[Path, Text | None] = field(default_factory=dict)  # tiny ones asked for, and why they can't be had
    first_checkpoint: Any = None  # of a foreseen request: the CheckpointInfo that it begins with

    @property
    def observers(self) -> list[RequestObserver]:
        """In the order in which they are told. What measures sees what the job does for a stage as a part of it."""
        stages = self.job.stages if self.job is not None else None
        found = (self.job, stages, self.stock_clock, self.measurement)
        return [observer for observer in found if observer is not None]


def of(p) -> Request | None:
    """The request of `p`; None for a copy of it, and where there is none."""
    request = vars(p).get(ATTRIBUTE)
    return request if request is not None and request.owner() is p else None


def attach(p) -> Request:
    """The request of `p`, made where there is none. A copy takes over what holds for copies."""
    request = of(p)
    if request is None:
        origin = vars(p).get(ATTRIBUTE)
        request = Request(weakref.ref(p))
        if origin is not None:
            request.overrides, request.is_reference = origin.overrides, origin.is_reference
            request.inside_measured = origin.inside_measured or origin.measurement is not None
        setattr(p, ATTRIBUTE, request)
    return request


def job_of(p) -> Job | None:
    """The job of request `p`, or None where the extension is off."""
    request = of(p)
    return request.job if request is not None else None


def measurement_of(p) -> Measurement | None:
    request = of(p)
    return request.measurement if request is not None else None
