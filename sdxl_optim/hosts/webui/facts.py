"""What the WebUI and its relatives tell alike of a sampling pass before its first step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import nn

from modules import shared
from modules.shared import opts
from sdxl_optim.errors import Unsupported
from sdxl_optim.hosts.webui import request
from sdxl_optim.sampling.facts import UNetFacts
from sdxl_optim.sampling.loop import Call, Loop
from sdxl_optim.techniques.deepcache.calibration import timestep_of
from sdxl_optim.techniques.freeu.patch import freeu_stages
from sdxl_optim.unet.layout import Layout
from sdxl_optim.unet.work import cached_share


def unet_facts(unet: nn.Module, layout_of: Callable[[nn.Module], Layout], p) -> UNetFacts:
    try:
        layout = layout_of(unet)
    except Unsupported as error:
        return UNetFacts(stages=0, why_not=error.reason)
    size = _latent_size(p)

    def share_up_to(branch: int) -> float | None:
        return cached_share(layout, branch, *size) if branch < layout.depth else None

    return UNetFacts(layout.depth, freeu_stages(layout), None, share_up_to)


def _latent_size(p) -> tuple[int, int]:
    height, width = (p.hr_upscale_to_y, p.hr_upscale_to_x) if p.is_hr_pass else (p.height, p.width)
    return height // 8, width // 8


def timesteps(loop: Loop, denoiser) -> tuple[float, ...]:
    """Of each step's first call. Samplers from k-diffusion count in noise levels."""
    levels = [call.sigma for call in loop.calls if call.place == 0]
    counts_in_sigmas = getattr(denoiser.inner_model, "sigmas", None) is not None
    return tuple(map(timestep_of, levels)) if counts_in_sigmas else tuple(levels)


def scheduled(schedules, call: int):
    """The entry of a prompt's editing schedule that the host takes for its `call`-th call."""
    return next((entry for entry in schedules if call <= entry.end_at_step), schedules[0])


def tokens(entry) -> int:
    return (entry.cond["crossattn"] if isinstance(entry.cond, dict) else entry.cond).shape[0]


def _first_checkpoint(p):
    own = request.of(p)
    foreseen = own.first_checkpoint if own is not None else None
    return foreseen or shared.sd_model.sd_checkpoint_info


def to_refiner(p, calls: tuple[Call, ...], done: Callable[[int, float], float]) -> tuple[Call, ...]:
    """Mark the calls that the refiner will answer, by the host's own rule. done: how far the host counts itself to be
    before a call, by its number and noise level."""
    info, at = p.refiner_checkpoint_info, p.refiner_switch_at
    if info is None or at is None or _first_checkpoint(p) == info:
        return calls
    if getattr(p, "enable_hr", False) and opts.hires_fix_refiner_pass == (
        "first pass" if p.is_hr_pass else "second pass"
    ):
        return calls
    first = next((i for i, call in enumerate(calls) if done(i, call.sigma) >= at), len(calls))
    return tuple(replace(call, model=int(i >= first)) for i, call in enumerate(calls))
