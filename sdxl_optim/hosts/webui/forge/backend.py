"""A call is always the stock one here: Forge moves and casts weights inside it."""

from __future__ import annotations

from sdxl_optim.hosts.webui.family import NAME
from sdxl_optim.hosts.webui.job import Job
from sdxl_optim.settings import Settings
from sdxl_optim.techniques.accumulation.patch import fp16_accumulation
from sdxl_optim.wording import Text, message

REASON = message("{host} moves and casts weights in each call", host=NAME)


def reason_for_all_models() -> Text:
    return REASON


def why_not(settings: Settings) -> Text | None:
    """Why the settings' backend can't run here, or None."""
    return None if settings.backend.name == "eager" else REASON


def release_others(name: str) -> None:
    """Nothing is ever kept."""


def set_switches(job: Job) -> None:
    """Accumulation as decided, until the request's end."""
    if job.plan.config("backend.fp16_accumulation"):
        job.undo.enter_context(fp16_accumulation())
