"""What Forge and reForge keep to themselves, by setting: refused by name in the plan, the report and the infotext, and
greyed in the page."""

from __future__ import annotations

from dataclasses import replace

from sdxl_optim.hosts.webui.family import NAME
from sdxl_optim.hosts.webui.request_facts import common_facts
from sdxl_optim.sampling.facts import RequestFacts
from sdxl_optim.settings import Settings
from sdxl_optim.wording import Text, message

CANNOT: dict[str, Text] = {
    "memory.offload": message("{host} moves the model's parts itself", host=NAME),
    "memory.weights": message("{host} stores weights in fp8 itself, by an option of its own", host=NAME),
    "vae.precision": message("{host} chooses the VAE's precision itself (--vae-in-bf16, --vae-in-fp32)", host=NAME),
    "vae.tiling": message("{host} decodes in tiles itself where memory is short", host=NAME),
    "vae.tile_norms": message("{host} decodes in tiles itself where memory is short", host=NAME),
    "backend.attention": message("{host} chooses its attention itself, at its start", host=NAME),
}


def request_facts(p, settings: Settings, model, begins: bool) -> RequestFacts:
    """begins: whether the request begins now, and what it needs may be fetched. Otherwise nothing is loaded."""
    facts = common_facts(p, settings, begins)
    return replace(facts, cannot={**facts.cannot, **CANNOT})
