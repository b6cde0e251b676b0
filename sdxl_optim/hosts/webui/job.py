"""The work of one request with the extension on: its settings, its report, what it undoes."""

from __future__ import annotations

import logging
import time
import weakref
from collections.abc import Callable, Hashable
from contextlib import ExitStack

from sdxl_optim.hosts.webui import certain_end, request
from sdxl_optim.hosts.webui.family import HostFamily
from sdxl_optim.hosts.webui.observers import RequestObserver
from sdxl_optim.hosts.webui.stage_peaks import Stages
from sdxl_optim.planning.plan import RequestPlan, plan_request
from sdxl_optim.report import JobReport
from sdxl_optim.sentences import report_lines
from sdxl_optim.settings import Settings

log = logging.getLogger("sdxl_optim")


class Job(RequestObserver):
    """From `before_process` to the end of process_images. `close` runs once, whatever happened."""

    def __init__(self, settings: Settings, host: HostFamily, on_close: Callable[[Job], None]):
        self.settings = settings
        self.host = host
        self.report = JobReport()
        self.undo = ExitStack()
        self.plan = RequestPlan()
        self._decided_for: tuple[Callable[[], object], Hashable] | None = (
            None  # the plan's model, and what is beside it
        )
        self.vae = host.vae_for(self.report)
        self.undo.callback(self.vae.close)
        self.stages = Stages(self.report)
        self._on_close = on_close
        self._started = time.perf_counter()
        self._open = True

    def follow_model(self, p) -> None:
        """Another model may have been loaded: what acts on the model itself moves on to it."""
        self.host.weights.apply(p, self)
        self.vae.follow(self.decide(p))

    def decide(self, p) -> RequestPlan:
        """What holds for this request, with what is loaded now. What is refused goes into the report."""
        model, beside = self.host.loaded_model(), self.host.beside_the_model()
        known = self._decided_for
        same_model = known is not None and known[0]() is model
        if known is None or not same_model or known[1] != beside:
            facts = self.host.request_facts(p, self.settings, begins=True)
            if same_model:  # nothing was sampled by the former plan
                self.report.notes = [note for note in self.report.notes if note not in self.plan.notes]
            self.plan = plan_request(self.settings, facts)
            self._decided_for = ((lambda: None) if model is None else weakref.ref(model)), beside
            for note in self.plan.notes:
                self.report.add_note(note)
        return self.plan

    def sampling_begins(self, p) -> None:
        self.follow_model(p)

    def sampling_ends(self, p, latents) -> None:
        self.host.weights.before_decode(latents)

    def decode_ends(self, p) -> None:
        self.vae.report()
        self.host.weights.report_to(self.report)

    def close(self) -> None:
        if not self._open:
            return
        self._open = False
        try:
            self.undo.close()
        finally:
            self.report.seconds = time.perf_counter() - self._started
            self._on_close(self)
            log.info("; ".join(map(str, report_lines(self.report))) or "nothing was sampled")


def begin_job(p, job: Job) -> None:
    """Attach `job` to `p` until the end of its process_images."""
    request.attach(p).job = job

    def end() -> None:
        if request.job_of(p) is job:
            request.attach(p).job = None
        job.close()

    certain_end.at_the_end_of(p, end)


def end_job(p) -> None:
    """Forget what a former job on this `p`, or on the one it was copied from, may have left."""
    certain_end.forget(p)
    if own := request.of(p):
        own.job = None


def refuse_request(p, error: Exception) -> None:
    """Make this request end with `error` before anything is computed.

    The host reports and forgets whatever a script raises. It does not forget what the request's own methods raise, and
    asks for the prompts before all else.
    """

    def setup_prompts():
        raise error

    p.setup_prompts = setup_prompts
