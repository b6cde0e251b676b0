"""FreeU (arXiv:2309.11497) on diffusers' UNet: by `enable_freeu`, or by hooks for what that can't do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from diffusers import UNet2DConditionModel

from sdxl_optim.settings import FreeU
from sdxl_optim.techniques.freeu.tensors import scale_backbone, scale_low_frequencies


class FreeUSwitch:
    """FreeU on a UNet, to be turned on and off from call to call. `acted`: whether it changed anything in this call."""

    def __init__(self, unet: UNet2DConditionModel, settings: FreeU):
        self.unet, self.settings = unet, settings
        self.on = self.acted = False

    def turn(self, on: bool) -> None:
        self.on, self.acted = on, False


class NativeFreeU(FreeUSwitch):
    """diffusers' own: version 1."""

    def turn(self, on: bool) -> None:
        if on != self.on:
            f = self.settings
            self.unet.enable_freeu(f.s1, f.s2, f.b1, f.b2) if on else self.unet.disable_freeu()
        super().turn(on)
        self.acted = on


@contextmanager
def freeu_attached(
    unet: UNet2DConditionModel, settings: FreeU, is_skipped: Callable[[int, int], bool] | None = None
) -> Iterator[FreeUSwitch]:
    """While entered, FreeU can be turned on for the UNet's two deepest resolutions.

    diffusers has version 1 alone, takes a factor of 0 for "off", and scales the features in place, which
    changes DeepCache's stored tensors at each reuse. In these cases the same arithmetic is attached by hooks.
    is_skipped: with DeepCache, whether the layer (up block, resnet) keeps still in this call.
    """
    if settings.version == 1 and is_skipped is None and all((settings.b1, settings.b2, settings.s1, settings.s2)):
        switch = NativeFreeU(unet, settings)
        try:
            yield switch
        finally:
            switch.turn(False)
        return
    switch = FreeUSwitch(unet, settings)
    with ExitStack() as stack:
        width = unet.config.block_out_channels[-1]  # of the features that enter a layer
        stages = ((settings.b1, settings.s1), (settings.b2, settings.s2))
        for i, (block, factors) in enumerate(zip(unet.up_blocks, stages, strict=False)):
            for k, resnet in enumerate(block.resnets):
                skipped = (lambda i=i, k=k: is_skipped(i, k)) if is_skipped else (lambda: False)
                hook = _hook(switch, width, *factors, skipped)
                stack.callback(resnet.register_forward_pre_hook(hook).remove)
                width = resnet.out_channels
        yield switch


def _hook(switch: FreeUSwitch, width: int, b: float, s: float, skipped: Callable[[], bool]):
    def freeu(module, args):
        if not switch.on or skipped():
            return None
        switch.acted = True
        x = args[0]
        h, skip = x.split([width, x.shape[1] - width], 1)
        parts = (
            scale_backbone(h, b, switch.settings.version),
            h[:, width // 2 :],
            scale_low_frequencies(skip, s),
        )
        return (torch.cat(parts, 1), *args[1:])

    return freeu
