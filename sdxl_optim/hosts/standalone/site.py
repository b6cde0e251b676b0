"""Where a technique is attached: one pipeline in one run."""

from __future__ import annotations

from typing import Protocol

from diffusers import DiffusionPipeline

from sdxl_optim.planning.plan import Plan
from sdxl_optim.report import PassReport
from sdxl_optim.sampling.call import UNetCall


class Running(Protocol):
    """The run at work."""

    plan: Plan
    report: PassReport
    call: UNetCall | None


class PipelineSite:
    """A pipeline and the run that samples with it."""

    def __init__(self, pipe: DiffusionPipeline, run: Running):
        self.pipe, self.plan, self.report = pipe, run.plan, run.report
        self._run = run

    def current(self) -> UNetCall | None:
        """The UNet call under way."""
        return self._run.call
