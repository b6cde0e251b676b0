"""The execution backends on diffusers' UNet."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sdxl_optim import backends
from sdxl_optim.backends.environment import read_environment
from sdxl_optim.backends.execution import Execution
from sdxl_optim.backends.pool import ExecutionPool
from sdxl_optim.planning.plan import Note
from sdxl_optim.report import JobReport
from sdxl_optim.settings import Backend, Settings
from sdxl_optim.techniques.accumulation import fp16_accumulation, why_no_fp16_accumulation

executions = ExecutionPool()


def why_not(settings: Settings) -> str | None:
    """Why the settings' backend can't run here, or None."""
    name = settings.backend.name
    if name == "eager":
        return None
    if settings.deepcache.enabled:
        return "the DeepCache package keeps its tensors in Python; in the WebUI both work together"
    if settings.memory.offload != "host" or settings.memory.weights != "host":
        return "the settings of Memory move or convert weights in each call"
    return backends.why_not(name, read_environment())


def execution_of(name: str) -> Execution | None:
    """The named backend's execution, the same from request to request. Others free what they keep."""
    executions.release_others(name)
    return executions.get(name)


@contextmanager
def switches_as_asked(backend: Backend, job: JobReport) -> Iterator[None]:
    """diffusers' attention is torch's own already."""
    if not backend.fp16_accumulation:
        yield
        return
    if reason := why_no_fp16_accumulation():
        job.add_note(Note("fp16 accumulation", reason))
        yield
        return
    with fp16_accumulation():
        yield
