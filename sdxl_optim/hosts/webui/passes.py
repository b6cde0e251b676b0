"""One start of a sampler: its loop is run inside a Run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from modules import shared
from sdxl_optim.hosts.webui import adapter
from sdxl_optim.hosts.webui.job import Job
from sdxl_optim.hosts.webui.stages import DENOISE, ENCODE, UPSCALE
from sdxl_optim.hosts.webui.under_way import RUN, active
from sdxl_optim.planning.plan import make_plan
from sdxl_optim.unet.patching import replaced

WATCH = "sdxl_optim_watch"  # the attribute of the sampler under which the wait for its loop is found


def pass_name(p) -> str:
    return "hires" if p.is_hr_pass else ("img2img" if hasattr(p, "init_images") else "base")


def watch_sampler(p, job: Job | None) -> None:
    """Have p.sampler's next loop run inside a Run (or, where the extension is off for `p`, undisturbed by those of
    others)."""
    if job is None and not active:
        return
    sampler = p.sampler
    stale = vars(sampler).pop(WATCH, None)
    if stale is not None:  # announced before, but its loop never began
        stale.close()

    def make(original):
        def launch_sampling(steps, func):
            vars(sampler).pop(WATCH).close()  # once: each loop is announced anew
            with _others_suspended():
                if job is None:
                    return original(steps, func)
                with _running(p, sampler, job, steps, func):
                    return original(steps, func)

        return launch_sampling

    watch = ExitStack()
    watch.enter_context(replaced(sampler, "launch_sampling", make))
    setattr(sampler, WATCH, watch)


@contextmanager
def _others_suspended() -> Iterator[None]:
    others = list(active)
    for run in others:
        run.suspend()
    try:
        yield
    finally:
        for run in others:
            run.resume()


@contextmanager
def _running(p, sampler, job: Job, steps: int, func) -> Iterator[None]:
    settings = job.settings.for_hires() if p.is_hr_pass else job.settings
    plan = make_plan(settings, adapter.sampling.gather_facts(p, sampler, settings, steps, func))
    run = adapter.sampling.new_run(plan, pass_name(p))
    job.stages.ends(UPSCALE if p.is_hr_pass else ENCODE)
    job.report.add_pass(p.iteration, run.report)
    active.append(run)
    setattr(sampler, RUN, run)
    try:
        with run:
            yield
        run.report.stopped = shared.state.interrupted or shared.state.skipped
    finally:
        delattr(sampler, RUN)
        active.remove(run)
        job.stages.ends(DENOISE)
