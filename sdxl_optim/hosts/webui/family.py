"""Which WebUI this is: AUTOMATIC1111's, or one of the Forge family, which descends from it. Asked here and nowhere
else."""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from types import ModuleType

FORGE = find_spec("modules_forge") is not None  # all of the family
REFORGE = FORGE and find_spec("ldm_patched") is not None
NAME = "reForge" if REFORGE else "Forge" if FORGE else "WebUI"

# The flags of what is chosen at the start alone; nothing where the host has none.
FP32 = "--all-in-fp32" if FORGE else "--no-half"
CHANNELS_LAST = "--force-channels-last" if REFORGE else "" if FORGE else "--opt-channelslast"


def k_diffusion_sampling() -> ModuleType:
    """The module of k-diffusion's samplers that the host uses."""
    chosen = getattr(importlib.import_module("modules.sd_samplers_common"), "sampling", None)  # reForge has two
    return chosen or importlib.import_module("k_diffusion.sampling")
