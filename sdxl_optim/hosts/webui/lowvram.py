"""The WebUI's own --medvram, and our setting to load checkpoints into main memory, which sets --medvram-sdxl."""

from __future__ import annotations

from modules import lowvram, shared
from sdxl_optim.hosts.webui.options import LOAD, chosen

CHOSEN = "sdxl_optim_loads_into_main_memory"  # beside the flag: that our setting has set it


def load_into_main_memory_if_chosen() -> None:
    """Call this before the WebUI loads its first checkpoint."""
    flags = shared.cmd_opts
    if chosen(LOAD) and not (flags.medvram or flags.lowvram or flags.medvram_sdxl):
        flags.medvram_sdxl = True
        setattr(flags, CHOSEN, True)


def loads_into_main_memory() -> bool:
    """Whether --medvram-sdxl is in force by our setting alone."""
    return getattr(shared.cmd_opts, CHOSEN, False)


class HostLowvram:
    """Takes the hooks of --medvram, which would move its parts too, from a model, and gives them back.

    The part that the WebUI has on the device is offloaded first: the WebUI would believe it to be there from then on.
    """

    def __init__(self, model):
        lowvram.send_everything_to_cpu()
        self._hooks = []
        for module in model.modules():
            for key, hook in list(module._forward_pre_hooks.items()):
                if _is_hosts(hook):
                    self._hooks.append((module, key, module._forward_pre_hooks.pop(key)))
        vae = model.first_stage_model
        names = ("encode", "decode")
        self._vae, self._wraps = vae, {name: vars(vae)[name] for name in names if _is_hosts(vars(vae).get(name))}
        for name in self._wraps:
            delattr(vae, name)

    def restore(self) -> None:
        for module, key, hook in self._hooks:
            module._forward_pre_hooks[key] = hook
        for name, wrap in self._wraps.items():
            setattr(self._vae, name, wrap)


def _is_hosts(function) -> bool:
    return getattr(function, "__module__", "") == "modules.lowvram"
