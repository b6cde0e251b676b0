"""A call is always the stock one here: Forge moves and casts weights inside it."""

from __future__ import annotations

from sdxl_optim.hosts.webui.family import NAME
from sdxl_optim.hosts.webui.forge.memory import ATTENTION
from sdxl_optim.hosts.webui.job import Job
from sdxl_optim.planning.plan import Note
from sdxl_optim.settings import Settings
from sdxl_optim.techniques.accumulation import fp16_accumulation, why_no_fp16_accumulation
from sdxl_optim.wording import words

REASON = words("{host} moves and casts weights in each call", host=NAME)


def reason_for_all_models() -> str:
    return REASON


def why_not(settings: Settings) -> str | None:
    """Why the settings' backend can't run here, or None."""
    return None if settings.backend.name == "eager" else REASON


def release_others(name: str) -> None:
    """Nothing is ever kept."""


def set_switches(job: Job) -> None:
    """Accumulation as the request wants it, until its end."""
    for note in foreseen_switches(job.settings):
        job.report.add_note(note)
    if job.settings.backend.fp16_accumulation:
        if reason := why_no_fp16_accumulation():
            job.report.add_note(Note("fp16 accumulation", reason))
        else:
            job.undo.enter_context(fp16_accumulation())


def foreseen_switches(settings: Settings) -> list[Note]:
    return [Note("attention sdpa", ATTENTION)] if settings.backend.attention == "sdpa" else []
