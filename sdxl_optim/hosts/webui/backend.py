"""The execution backends inside the WebUI: what its state forbids, what its calls depend on, and what stays between
requests."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path

from torch import nn

from modules import devices, lowvram, paths, sd_hijack, sd_unet, shared
from sdxl_optim import backends
from sdxl_optim.backends.api import CannotPrepare, HostHooks
from sdxl_optim.backends.environment import Environment, read_environment
from sdxl_optim.backends.pool import ExecutionPool
from sdxl_optim.hosts.webui import lora
from sdxl_optim.settings import Settings
from sdxl_optim.wording import Text, message

MOVED = "--medvram and --lowvram move the weights in and out of the card"


def environment() -> Environment:
    return read_environment(host_reason())


def reason_for_all_models() -> Text | None:
    """Why no call can be anything but the stock one, whichever model is loaded, or None."""
    return MOVED if shared.cmd_opts.lowvram or shared.cmd_opts.medvram else None


def host_reason() -> Text | None:
    """Why no call of the loaded model can be anything but the stock one, or None."""
    model = shared.sd_model
    if sd_unet.current_unet is not None:
        return message("the UNet is run by {name}", name=sd_unet.current_unet_option.label)
    if getattr(model, "is_sd3", False):
        return message("SD {version} has other parts", version=3)
    if lowvram.is_enabled(model):
        return MOVED
    if devices.unet_needs_upcast:
        return "--upcast-sampling converts weights in each call"
    return None


def why_not(settings: Settings, executions: ExecutionPool) -> Text | None:
    """Why the settings' backend can't run here and now, or None."""
    name = settings.backend.name
    if name == "eager":
        return None
    if settings.memory.offload != "host" or settings.memory.weights != "host":
        return "the settings of Memory move or convert weights in each call"
    if reason := backends.why_not(name, environment()):
        return reason
    execution = executions.get(name)
    # Offload and fp8 stay on until a request, such as this one, asks for neither.
    return None if execution is None else execution.why_not(shared.sd_model.model.diffusion_model, before_undo=True)


def tell_progress(text: str) -> None:
    shared.state.textinfo = text


# --- what a call depends on


def fingerprint(unet: nn.Module) -> Hashable:
    """Whatever of the WebUI's state decides which operations a call of `unet` runs."""
    options = shared.opts
    return (
        lora.loaded_loras(),
        tuple(shared.loaded_hypernetworks),
        sd_hijack.model_hijack.circular_enabled,
        getattr(shared.sd_model, "applied_token_merged_ratio", 0),
        getattr(sd_hijack.current_optimizer, "name", None),
        options.upcast_attn,
        str(devices.dtype_unet),
    )


def is_idle_patch(module: nn.Module) -> bool:
    """Built-in Hypertile leaves its hooks when it is off."""
    tiles = getattr(module, "__webui_hypertile_params", None)
    if tiles is None:
        return False
    if tiles.enabled:
        raise CannotPrepare("Hypertile draws its tiles anew in each call")
    return True


def new_pool() -> ExecutionPool:
    hooks = HostHooks(lora.Merges().apply, fingerprint, is_idle_patch, tell_progress)
    return ExecutionPool(hooks, Path(paths.data_path) / "cache" / "sdxl_optim")
