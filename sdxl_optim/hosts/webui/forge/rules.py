"""What Forge and reForge decide in each call of the denoiser: whether they leave out the uncond rows, and in which
order rows go through the UNet."""

from __future__ import annotations

import math
import sys
from collections.abc import Hashable

from torch import nn

from modules.shared import opts
from sdxl_optim.errors import Unsupported
from sdxl_optim.hosts.webui.family import REFORGE
from sdxl_optim.unet.layout import Layout, read_layout

# What others can put into a patcher's options that makes the uncond prediction theirs, …
GUIDANCE = ("sampler_cfg_function", "sampler_pre_cfg_function", "sampler_post_cfg_function",
            "sampler_calc_cond_batch_function", "disable_cfg1_optimization")  # fmt: skip
# … and what changes the features between the UNet's blocks.
BETWEEN_BLOCKS = ("input_block_patch", "input_block_patch_after_skip", "output_block_patch")


def no_uncond(denoiser, call: int, total: int, sigma: float, scale: float, options: dict) -> bool:
    """Whether the host leaves out the uncond rows in the `call`-th of `total` calls.

    scale: of the guidance; options: of the patcher.
    """
    if math.isclose(scale, 1.0) and not options.get("disable_cfg1_optimization", False):
        return True
    early = opts.skip_early_cond
    if REFORGE:
        least, turn = opts.s_min_uncond, call % 2 == 0
        skips_early = call < early or (early != 0 and call / total <= early)
    else:
        if options.get("disable_cfg1_optimization", False):  # its two ways to skip are by a scale of 1
            return False
        least, turn = denoiser.sampler.s_min_uncond or 0, call % 2 == 1
        skips_early = early > 0 and call / total <= early
    return bool(skips_early or (least > 0 and sigma < least and (turn or opts.s_min_uncond_all)))


def reads_sigma(denoiser) -> bool:
    """Whether the rule depends on the noise level. Reading it waits for the GPU."""
    return ((opts.s_min_uncond if REFORGE else denoiser.sampler.s_min_uncond) or 0) > 0


def goes_together(cond_tokens: int, uncond_tokens: int) -> bool:
    """Whether cond and uncond rows of such lengths share a UNet call: shorter ones are repeated up to four times."""
    shorter = min(cond_tokens, uncond_tokens)
    return not shorter or math.lcm(cond_tokens, uncond_tokens) // shorter <= 4


def rows_held(rows: int, kwargs: dict) -> tuple[Hashable, int]:
    """Of a UNet call of so many rows: whether it holds uncond rows alone, and the row at which its cond rows begin."""
    marks = kwargs.get("transformer_options", {}).get("cond_or_uncond", [0])  # of equal blocks of rows; 1: uncond
    return 0 not in marks, marks.index(0) * rows // len(marks) if 0 in marks else 0


def layout_of(unet: nn.Module) -> Layout:
    """reForge's UNet calls the layers in its blocks itself."""
    if type(unet).__name__ == "OptimizedModule":
        raise Unsupported("UNet", "torch.compile is on")
    return read_layout(unet, by_layers=hasattr(sys.modules[type(unet).__module__], "forward_timestep_embed"))


def why_no_cache(options: dict) -> str | None:
    """Why deep features can't be kept, by a patcher's options, or None."""
    inside = options.get("transformer_options", {})
    if inside.get("block_modifiers") or any(inside.get("patches", {}).get(name) for name in BETWEEN_BLOCKS):
        return "another extension changes the features between the UNet's blocks"
    return None


def why_no_cut(cond, loop, options: dict, edits: bool) -> str | None:
    """Why the uncond rows can't be dropped, or None."""
    if edits:
        return "instruct-pix2pix models need the unconditional rows"
    if any(len(prompts) > 1 for prompts in cond.batch):
        return "prompts joined by AND need the unconditional rows"
    if loop.needs_uncond:
        return "this sampler (CFG++) works with the unconditional prediction"
    if any(options.get(name) for name in GUIDANCE):
        return "another extension works on the guidance, and needs the unconditional rows"
    return None


def without_skipped(control: dict | None, skipped: range, depth: int) -> dict | None:
    """ControlNet's residuals of a call without those for blocks that keep still.

    control: lists by "input", "middle" and "output", of which the UNet pops one a block. skipped: indices of the
    blocks, of which there are `depth` inputs, one in the middle, and as many outputs. The last one's result is what is
    kept; where that is the middle block, its residual is added anew in each call.
    """
    if control is None:
        return None
    kept = {name: list(values) for name, values in control.items()}
    _drop(kept.get("input", []), range(skipped.start, depth))
    _drop(kept.get("middle", []), range(depth < skipped.stop - 1))
    _drop(kept.get("output", []), range(skipped.stop - 1 - depth))
    return kept


def _drop(values: list, popped: range) -> None:
    for i in popped:
        if i < len(values):
            values[-1 - i] = None
