"""Where the weights lie is Forge's own affair: what the settings ask for is refused by name."""

from __future__ import annotations

from sdxl_optim.hosts.webui.family import NAME
from sdxl_optim.planning.plan import Note
from sdxl_optim.report import JobReport
from sdxl_optim.settings import FieldPath, Memory, Settings
from sdxl_optim.wording import words

OFFLOAD = words("{host} moves the model's parts itself", host=NAME)
WEIGHTS = words("{host} stores weights in fp8 itself, by an option of its own", host=NAME)
VAE = words("{host} chooses the VAE's precision itself (--vae-in-bf16, --vae-in-fp32)", host=NAME)
TILING = words("{host} decodes in tiles itself where memory is short", host=NAME)
ATTENTION = words("{host} chooses its attention itself, at its start", host=NAME)


def foreseen(model, memory: Memory) -> tuple[list[str], list[Note]]:
    """Nothing is ever moved; what is refused."""
    notes = []
    if memory.offload != "host":
        notes.append(Note("Memory offload", OFFLOAD))
    if memory.weights != "host":
        notes.append(Note("Memory weights", WEIGHTS))
    return [], notes


def unavailable() -> list[tuple[FieldPath, str | bool, str]]:
    """(path of a setting, its value, why that can't be had)."""
    return [
        *((("memory", "offload"), name, OFFLOAD) for name in ("staged", "model", "sequential")),
        (("memory", "weights"), "fp8", WEIGHTS),
        *((("vae", "precision"), name, VAE) for name in ("auto", "fp16", "bf16", "fp32")),
        (("vae", "tiling"), True, TILING),
        (("vae", "tile_norms"), "picture", TILING),
        (("backend", "attention"), "sdpa", ATTENTION),
    ]


class WeightsOnForge:
    """Nothing is placed, and what is asked for is refused."""

    def undo_if_changed(self, memory: Memory) -> None: ...

    def begin(self, p, job) -> None: ...

    def apply(self, p, settings: Settings, report: JobReport) -> None:
        for note in foreseen(None, settings.memory)[1]:
            report.add_note(note)

    def before_decode(self, latents) -> None: ...

    def free_others(self) -> bool:
        return False

    def report_to(self, report: JobReport) -> None: ...

    def model_loaded(self, model) -> None: ...


weights = WeightsOnForge()


def cheap_previews(job) -> None:
    """Previews stay as they are."""
