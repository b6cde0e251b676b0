"""What a host knows before anything is done. No torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sdxl_optim.sampling.loop import Loop, Rows
from sdxl_optim.wording import Text


@dataclass(frozen=True)
class UNetFacts:
    """The UNet that is loaded.

    depth: number of its input blocks, which is also the number of DeepCache branches.
    stages: how many of its resolutions FreeU can act on (at most 2).
    why_not: reason why its blocks can't be reached (a foreign sd_unet), or None.
    share_up_to: from a branch to the share of a full call's arithmetic that the blocks up to it do, 0 to 1; None where
    it can't be told.
    """

    depth: int = 0
    stages: int = 2
    why_not: Text | None = None
    share_up_to: Callable[[int], float | None] = lambda branch: None


@dataclass(frozen=True)
class Facts:
    """A sampling pass before its first step.

    cannot: by technique (its group in the settings), the reason why this host or this request forbids it.
    timesteps: of each step's first call, in the model's own count (999 is pure noise).
    calibration: of the model, for adaptive DeepCache (techniques/deepcache/calibration.py); where it is None,
    no_calibration is the reason.
    """

    loop: Loop
    rows: Rows
    cfg_scale: float
    unet: UNetFacts = UNetFacts()
    cannot: Mapping[str, Text] = field(default_factory=dict)
    timesteps: tuple[float, ...] = ()
    calibration: Any = None
    no_calibration: Text | None = "this host has no calibration"


@dataclass(frozen=True)
class RequestFacts:
    """A request and the machine, before the request begins.

    cannot: by setting ("memory.offload", "vae.tiling", …), the reason why this host, model or machine forbids it.
    said: by setting, what there is to say of it although it runs.
    device: torch's name for the kind of device that computes ("cuda", "cpu", …).
    vae_precision: the precision in which "auto" decodes here: fp16, bf16 or fp32.
    largest_tile: pixels along a side of the largest tile that decodes within the memory budget; None for any.
    """

    cannot: Mapping[str, Text] = field(default_factory=dict)
    said: Mapping[str, Text] = field(default_factory=dict)
    device: str = "cpu"
    vae_precision: str = "fp32"
    largest_tile: int | None = None
