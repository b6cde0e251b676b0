"""What can be had of the settings' offload and fp8 here, in the real run and in the live plan."""

from __future__ import annotations

from dataclasses import replace

from modules import devices, lowvram, sd_unet, shared
from sdxl_optim.hosts.webui.host_options import host_option
from sdxl_optim.hosts.webui.lowvram import loads_into_main_memory
from sdxl_optim.hosts.webui.placement import MemoryDecision, WeightsOnHost
from sdxl_optim.planning.plan import Note
from sdxl_optim.settings import FieldPath, Memory
from sdxl_optim.techniques.memory import fp8
from sdxl_optim.wording import joined


def decide(model, memory: Memory) -> MemoryDecision:
    notes: list[Note] = []
    decided = memory
    if memory.weights == "fp8" and _refused("Memory weights", _why_no_fp8(), notes):
        decided = replace(decided, weights="host")
    if memory.offload != "host":
        if _refused("Memory offload", _why_no_offload(model), notes):
            decided = replace(decided, offload="host")
        elif devices.device.type == "cpu":
            notes.append(Note("Memory offload", "there is no GPU here, so nothing is saved", refused=False))
    return MemoryDecision(memory, decided, tuple(notes))


weights = WeightsOnHost(decide)


def foreseen(model, memory: Memory) -> tuple[list[str], list[Note]]:
    """What a `Placement` on `model` would be, in words, and what it would refuse; nothing is moved."""
    decision = decide(model, memory)
    facts = ["UNet in fp8"] if decision.memory.weights == "fp8" else []
    if decision.memory.offload != "host":
        facts.append(joined([decision.memory.offload, " ", "offload"]))
    return facts, list(decision.notes)


def _refused(feature: str, reason: str | None, notes: list[Note]) -> bool:
    if reason:
        notes.append(Note(feature, reason))
    return bool(reason)


def _why_no_fp8() -> str | None:
    if devices.fp8:
        return "the WebUI's own fp8 storage is on"
    if sd_unet.current_unet is not None:
        return f"the UNet is run by {sd_unet.current_unet_option.label}"
    return fp8.why_not()


def _why_no_offload(model) -> str | None:
    if lowvram.is_enabled(model) and not loads_into_main_memory():
        return "the WebUI was started with --medvram or --lowvram, which moves the parts itself"
    if getattr(model, "is_sd3", False):
        return "SD 3 has other parts"
    if sd_unet.current_unet is not None:
        return f"the UNet is run by {sd_unet.current_unet_option.label}"
    return None


def unavailable() -> list[tuple[FieldPath, str | bool, str]]:
    """(path of a setting, its value, why that can't be had) of what no model of this host can have."""
    return []


def cheap_previews(job) -> None:
    """Previews by the full VAE would call it from another thread while the UNet has the device: take cheaper ones."""
    if job.settings.memory.offload != "host" and shared.opts.show_progress_type == "Full":
        job.undo.enter_context(host_option("show_progress_type", "Approx NN"))
        job.report.add_note(Note("Memory offload", "previews are by Approx NN instead of the full VAE", refused=False))
