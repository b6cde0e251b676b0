"""The execution backends on diffusers' UNet."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from sdxl_optim import backends
from sdxl_optim.backends.environment import read_environment
from sdxl_optim.backends.execution import Execution
from sdxl_optim.backends.pool import ExecutionPool
from sdxl_optim.planning.plan import RequestPlan
from sdxl_optim.settings import Settings
from sdxl_optim.techniques.accumulation.patch import fp16_accumulation
from sdxl_optim.wording import Text

executions = ExecutionPool()


def why_not(settings: Settings) -> Text | None:
    """Why the settings' backend can't run here, or None."""
    name = settings.backend.name
    if name == "eager":
        return None
    if settings.deepcache.enabled:
        return "the DeepCache package keeps its tensors in Python; in the WebUI both work together"
    if settings.memory.offload != "host" or settings.memory.weights != "host":
        return "the settings of Memory move or convert weights in each call"
    return backends.why_not(name, read_environment())


def execution_of(name: str | None) -> Execution | None:
    """The named backend's execution, the same from request to request; None for the stock call. Others free what they
    keep."""
    executions.release_others(name or "eager")
    return executions.get(name or "eager")


@contextmanager
def switches_as_planned(plan: RequestPlan) -> Iterator[None]:
    """Context manager: torch's switches as planned. diffusers' attention is torch's own already."""
    with fp16_accumulation() if plan.config("backend.fp16_accumulation") else nullcontext():
        yield
