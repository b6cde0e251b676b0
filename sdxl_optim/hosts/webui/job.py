"""One `process_images`: its settings, its report, and an end that always comes."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from types import ModuleType

from sdxl_optim.hosts.webui.stages import Stages
from sdxl_optim.report import JobReport
from sdxl_optim.settings import Settings

log = logging.getLogger("sdxl_optim")

ATTRIBUTE = "sdxl_optim_job"


class Job:
    """What the extension knows of the request `p`. `close` runs once, whatever happened. host: the adapter."""

    def __init__(self, settings: Settings, host: ModuleType, on_close: Callable[[Job], None]):
        self.settings = settings
        self._memory = host.memory
        self.report = JobReport()
        self.undo = ExitStack()
        self.vae = host.vae.VaePatch(settings, self.report, host.memory.relieve)
        self.undo.callback(self.vae.close)
        self.stages = Stages(self.report)
        self._on_close = on_close
        self._started = time.perf_counter()
        self._open = True

    def follow_model(self, p) -> None:
        """Another model may have been loaded: what acts on the model itself moves on to it."""
        self._memory.ensure(p, self.settings, self.report)
        self.vae.follow()

    def close(self) -> None:
        if not self._open:
            return
        self._open = False
        try:
            self.undo.close()
        finally:
            self._memory.tell(self.report)
            self.report.seconds = time.perf_counter() - self._started
            self._on_close(self)
            log.info("; ".join(self.report.lines()) or "nothing was sampled")


def job_of(p) -> Job | None:
    """The job of request `p`, or None where the extension is off."""
    return vars(p).get(ATTRIBUTE)


def begin_job(p, job: Job) -> None:
    """Attach `job` to `p` until the end of its process_images.

    `postprocess` is not called after an exception. What the host always does, in process_images' `finally`, is ask
    whether to restore the request's override settings: this answer is the one end of a job that always comes.
    """
    end_job(p)
    setattr(p, ATTRIBUTE, job)
    p.override_settings_restore_afterwards = _EndOfJob(p, job, bool(p.override_settings_restore_afterwards))


def end_job(p) -> None:
    """Close what a former job on this `p`, or on the one it was copied from, may have left."""
    if isinstance(p.override_settings_restore_afterwards, _EndOfJob):
        p.override_settings_restore_afterwards = p.override_settings_restore_afterwards.answer
    vars(p).pop(ATTRIBUTE, None)


class _EndOfJob:
    def __init__(self, p, job: Job, answer: bool):
        self.p, self.job, self.answer = p, job, answer

    def __bool__(self) -> bool:
        # A script may copy `p` and generate from the copy, without any scripts, while `p` itself is still at work.
        if sys._getframe(1).f_locals.get("p") is not self.p:
            return self.answer
        if job_of(self.p) is self.job:
            end_job(self.p)
        self.job.close()
        return self.answer


def refuse_request(p, error: Exception) -> None:
    """Make this request end with `error` before anything is computed.

    The host reports and forgets whatever a script raises. It does not forget what the request's own methods raise, and
    asks for the prompts before all else.
    """

    def setup_prompts():
        raise error

    p.setup_prompts = setup_prompts
