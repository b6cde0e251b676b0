"""FreeU on a UNet of the ldm/sgm layout: a forward pre-hook on each output block of the two deepest resolutions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch

from sdxl_optim.sampling.call import UNetCall
from sdxl_optim.settings import FreeU
from sdxl_optim.techniques.freeu.tensors import scale_backbone, scale_low_frequencies
from sdxl_optim.unet.layout import Layout

KEY = "freeu"
CurrentCall = Callable[[], UNetCall | None]


class FreeUOnBlocks:
    """FreeU in the calls of one UNet. blocks: indices of the layout's blocks on whose inputs it acts."""

    def __init__(self, settings: FreeU, blocks: list[int]):
        self._settings, self._blocks = settings, blocks

    def begin(self, call: UNetCall) -> UNetCall:
        if not any(acts_on(call, block) for block in self._blocks):
            return call
        return call.with_operation(KEY, self._settings)


def acts_on(call: UNetCall | None, block: int) -> bool:
    """Whether FreeU changes the block's input in this call.

    Also in calls that others add to ours (PAG): they compare their prediction with ours, and the difference must not be
    FreeU's.
    """
    return call is not None and call.does(KEY) and not call.skips(block)


@contextmanager
def freeu_attached(layout: Layout, settings: FreeU, current: CurrentCall) -> Iterator[FreeUOnBlocks]:
    """Context manager: the blocks' inputs are changed in the calls whose step has FreeU. current: the call under way.

    A block's input is [features | skip] on dim 1. The deepest resolution takes (b1, s1), the next one (b2, s2), as
    diffusers' `enable_freeu` does, whatever the widths are.
    """
    factors = ((settings.b1, settings.s1), (settings.b2, settings.s2))
    first = layout.depth + 1  # index of the first output block
    with ExitStack() as stack:
        for i in freeu_blocks(layout):
            hook = _hook(first + i, layout.skip_channels(i), *factors[layout.stages[i]], settings.version, current)
            layer = layout.called(layout.output_blocks[i])[0]
            stack.callback(layer.register_forward_pre_hook(hook).remove)
        yield FreeUOnBlocks(settings, [first + i for i in freeu_blocks(layout)])


def _hook(block: int, skip_channels: int, b: float, s: float, version: int, current: CurrentCall):
    def sdxl_optim_freeu(module, args):
        if not acts_on(current(), block):
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
