"""The one place that chooses between AUTOMATIC1111's WebUI and the Forge family."""

from __future__ import annotations

from sdxl_optim.hosts.webui.family import FORGE, HostFamily
from sdxl_optim.hosts.webui.host_options import HostOptions


def chosen_host() -> HostFamily:
    if FORGE:
        from sdxl_optim.hosts.webui.forge.host import Forge

        return Forge(HostOptions())
    from sdxl_optim.hosts.webui.a1111 import A1111

    return A1111(HostOptions())
