"""The facts that advice goes by, as this WebUI has them."""

from __future__ import annotations

import importlib.util

import torch

from modules import devices, sd_hijack, shared
from sdxl_optim.hosts.webui.family import HostFamily
from sdxl_optim.settings.advice import Machine


def machine(host: HostFamily) -> Machine:
    options, model = shared.cmd_opts, host.loaded_model()
    obeys = not host.moves_weights  # --medvram and --lowvram
    device = devices.device.type
    on_card = device == "cuda" and torch.cuda.is_available()
    optimizer = getattr(sd_hijack, "current_optimizer", None)
    return Machine(
        device=device,
        memory=torch.cuda.get_device_properties(devices.device).total_memory if on_card else None,
        capability=torch.cuda.get_device_capability(devices.device) if on_card else None,
        torch=torch.__version__,
        triton=importlib.util.find_spec("triton") is not None,
        kind=_kind(model),
        checkpoint=model.sd_checkpoint_info.name_for_extra if model is not None else None,
        medvram=obeys and bool(options.medvram or (options.medvram_sdxl and _kind(model) == "sdxl")),
        lowvram=obeys and bool(options.lowvram),
        no_half=bool(options.no_half),
        no_half_vae=bool(options.no_half_vae),
        attention=optimizer.name if optimizer is not None else None,
        host_offloads=host.moves_weights,
    )


def _kind(model) -> str | None:
    if model is None:
        return None
    return next((kind for kind in ("sdxl", "sd3", "sd2", "sd1") if getattr(model, f"is_{kind}", False)), None)
