"""The modules that differ between AUTOMATIC1111's WebUI and the Forge family, by one name each."""

from __future__ import annotations

from sdxl_optim.hosts.webui.family import FORGE

if FORGE:
    from sdxl_optim.hosts.webui.forge import backend, memory, request_facts, sampling, vae
else:
    from sdxl_optim.hosts.webui import backend, memory, request_facts, sampling, vae

__all__ = ["backend", "memory", "request_facts", "sampling", "vae"]
