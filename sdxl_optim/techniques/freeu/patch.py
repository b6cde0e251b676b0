"""FreeU on a UNet of the ldm/sgm layout: a forward pre-hook on each output block of the two deepest resolutions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch

from sdxl_optim.settings import FreeU
from sdxl_optim.techniques.freeu.tensors import scale_backbone, scale_low_frequencies
from sdxl_optim.unet.layout import Layout


@contextmanager
def freeu_attached(layout: Layout, settings: FreeU, is_on: Callable[[int], bool]) -> Iterator[None]:
    """While entered, the blocks' inputs are changed wherever is_on(output block's index) holds.

    A block's input is [features | skip] on dim 1. The deepest resolution takes (b1, s1), the next one (b2, s2), as
    diffusers' `enable_freeu` does, whatever the widths are.
    """
    factors = ((settings.b1, settings.s1), (settings.b2, settings.s2))
    with ExitStack() as stack:
        for i in freeu_blocks(layout):
            hook = _hook(i, layout.skip_channels(i), *factors[layout.stages[i]], settings.version, is_on)
            first = layout.called(layout.output_blocks[i])[0]
            stack.callback(first.register_forward_pre_hook(hook).remove)
        yield


def _hook(index: int, skip_channels: int, b: float, s: float, version: int, is_on: Callable[[int], bool]):
    def sdxl_optim_freeu(module, args):
        if not is_on(index):
            return None
        x = args[0]
        h, skip = x.split([x.shape[1] - skip_channels, skip_channels], 1)
        parts = (scale_backbone(h, b, version), h[:, h.shape[1] // 2 :], scale_low_frequencies(skip, s))
        return (torch.cat(parts, 1), *args[1:])

    return sdxl_optim_freeu


def freeu_blocks(layout: Layout) -> list[int]:
    """The output blocks on whose inputs FreeU acts."""
    return [i for i, stage in enumerate(layout.stages) if stage < 2]


def freeu_stages(layout: Layout) -> int:
    """On how many of its two resolutions FreeU acts in this UNet."""
    return min(2, 1 + max(layout.stages, default=-1))
