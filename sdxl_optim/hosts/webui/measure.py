"""One request measured from outside: an own clock, torch's peaks, the denoiser's calls as they come. It changes
nothing in the request, so that stock pictures can be measured too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from modules import devices, launch_utils, shared
from modules.shared import opts
from sdxl_optim.bench.measure import Stopwatch, device_name
from sdxl_optim.bench.results import Row
from sdxl_optim.hosts.webui import request
from sdxl_optim.hosts.webui.family import NAME
from sdxl_optim.hosts.webui.job import Job
from sdxl_optim.hosts.webui.observers import RequestObserver
from sdxl_optim.hosts.webui.peaks import HighWater
from sdxl_optim.sampling.loop import Counts


class Measurer:
    """Begins measurements, and knows what this process has computed before: another run of it loads nothing."""

    def __init__(self):
        self._computed: set[tuple] = set()

    def begin(self, p, done: Callable[[Row, Any], object], **facts) -> None:
        """Measure the request `p`. done: gets the finished row and the request's `processed`; a request that fails has
        none. facts: columns that the caller knows."""
        request.attach(p).measurement = Measurement(done, facts, self.is_first)

    def is_first(self, p) -> bool:
        """Whether no request of this checkpoint and size has come to its end here."""
        key = (p.sd_model_name, p.width, p.height, p.batch_size)
        first = key not in self._computed
        self._computed.add(key)
        return first


class Measurement(RequestObserver):
    """One request, from its beginning until its end."""

    def __init__(self, done: Callable[[Row, Any], object], facts: dict[str, Any], is_first: Callable[[Any], bool]):
        self._done, self._facts, self._is_first = done, facts, is_first
        self.counts = Counts()
        self._sampled = False  # since the last decode
        self._peaks = HighWater(devices.device, shared.mem_mon).start() if _on_cuda() else None
        self._watch = Stopwatch(devices.device)

    def sampling_begins(self, p) -> None:
        if not self._sampled:  # the hires pass goes on with the same lap
            self._watch.skip()
        self._sampled = True

    def sampling_ends(self, p, latents) -> None:
        if self._sampled:
            self._watch.lap("sampling")

    def decode_ends(self, p) -> None:
        if self._sampled:
            self._watch.lap("decode")
        self._sampled = False

    def count(self, stock_rows: int) -> None:
        """A denoiser call of a stock run."""
        self.counts += Counts(calls=1, rows=stock_rows, stock_rows=stock_rows)

    def ends(self, p, processed) -> None:
        request.attach(p).measurement = None
        if shared.state.interrupted or shared.state.skipped or shared.state.stopping_generation:
            return
        seconds = self._watch.total()
        row = self._row(p, seconds, request.job_of(p))
        self._done(row, processed)

    def _row(self, p, seconds: float, job: Job | None) -> Row:
        counts = self.counts if job is None else sum(_passes(job), Counts())
        allocated, reserved = self._peaks.read() if self._peaks else (None, None)
        facts = {
            "prompt": p.all_prompts[0],
            "host": f"{NAME} {launch_utils.git_tag()}",
            "device": device_name(devices.device),
            "checkpoint": p.sd_model_name,
            "sampler": p.sampler_name,
            "scheduler": p.scheduler or "",
            "width": p.width,
            "height": p.height,
            "steps": p.steps,
            "cfg": float(p.cfg_scale),
            "seed": p.all_seeds[0],
            "batch": p.batch_size,
            "first_seconds": seconds if self._is_first(p) else None,
            "allocated_bytes": allocated,
            "reserved_bytes": reserved,
            "decoder": (job and job.report.decoder) or opts.sd_vae_decode_method,
            **self._facts,
        }
        laps = (self._watch.seconds.get(stage, 0.0) for stage in ("sampling", "decode"))
        return Row.of(job.report if job else None, counts, seconds, *laps, **facts)


def _passes(job: Job) -> list[Counts]:
    return [one.counts for one in job.report.all_passes]


def _on_cuda() -> bool:
    return devices.device.type == "cuda"
