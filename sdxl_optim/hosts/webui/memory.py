"""What forbids offload and fp8 in this WebUI, and what offload asks of its previews."""

from __future__ import annotations

from modules import devices, lowvram, sd_unet, shared
from sdxl_optim.hosts.webui.host_options import HostOptions
from sdxl_optim.hosts.webui.lowvram import loads_into_main_memory
from sdxl_optim.techniques.memory import fp8
from sdxl_optim.wording import Text, message


def why_no_fp8() -> Text | None:
    if devices.fp8:
        return "the WebUI's own fp8 storage is on"
    return _run_by_another() or fp8.why_not()


def why_no_offload(model) -> Text | None:
    if lowvram.is_enabled(model) and not loads_into_main_memory():
        return "the WebUI was started with --medvram or --lowvram, which moves the parts itself"
    if getattr(model, "is_sd3", False):
        return message("SD {version} has other parts", version=3)
    return _run_by_another()


def _run_by_another() -> Text | None:
    if sd_unet.current_unet is None:
        return None
    return message("the UNet is run by {name}", name=sd_unet.current_unet_option.label)


def cheap_previews(job, options: HostOptions) -> None:
    """Previews by the full VAE would call it from another thread while the UNet has the device: take cheaper ones."""
    if job.plan.config("memory.offload") is not None and shared.opts.show_progress_type == "Full":
        job.undo.enter_context(options.held("show_progress_type", "Approx NN"))
