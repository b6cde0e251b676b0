"""One start of a sampler: its loop is run inside a Run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from modules import shared
from sdxl_optim.hosts.webui import request
from sdxl_optim.hosts.webui.active_runs import ActiveRuns
from sdxl_optim.hosts.webui.job import Job
from sdxl_optim.planning.plan import make_plan
from sdxl_optim.unet.patching import replaced


def pass_name(p) -> str:
    return "hires" if p.is_hr_pass else ("img2img" if hasattr(p, "init_images") else "base")


def watch_sampler(p, job: Job | None, runs: ActiveRuns) -> None:
    """Have p.sampler's next loop run inside a Run (or, where the extension is off for `p`, undisturbed by those of
    others)."""
    if job is None and not runs:
        return
    sampler, own = p.sampler, request.attach(p)
    if own.loop_awaited is not None:  # announced before, but its loop never began
        own.loop_awaited.close()

    def make(original):
        def launch_sampling(steps, func):
            if own.loop_awaited is not None:
                own.loop_awaited.close()  # once: each loop is announced by itself
            own.loop_awaited = None
            with runs.suspended():
                if job is None:
                    return original(steps, func)
                with _running(p, sampler, job, runs, steps, func):
                    return original(steps, func)

        return launch_sampling

    own.loop_awaited = ExitStack()
    own.loop_awaited.enter_context(replaced(sampler, "launch_sampling", make))


@contextmanager
def _running(p, sampler, job: Job, runs: ActiveRuns, steps: int, func) -> Iterator[None]:
    settings = job.settings.for_hires() if p.is_hr_pass else job.settings
    plan = make_plan(settings, job.host.gather_facts(p, sampler, settings, steps, func))
    run = job.host.new_run(plan, pass_name(p))
    observers = request.attach(p).observers
    for observer in observers:
        observer.loop_begins(p)
    job.report.add_pass(p.iteration, run.report)
    try:
        with runs.sampling(sampler, run), run:
            yield
        run.report.stopped = shared.state.interrupted or shared.state.skipped
    finally:
        for observer in observers:
            observer.loop_ends(p)
