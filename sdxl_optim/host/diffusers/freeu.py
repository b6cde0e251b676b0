"""FreeU (arXiv:2309.11497) on diffusers' UNet: by `enable_freeu`, or by hooks for what that can't do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from diffusers import UNet2DConditionModel

from sdxl_optim.ops.freeu import scale_backbone, scale_low_frequencies
from sdxl_optim.settings import FreeU


class FreeUSwitch:
    """FreeU on a UNet, to be turned on and off from call to call."""

    def __init__(self, unet: UNet2DConditionModel, settings: FreeU):
        self.unet, self.settings = unet, settings
        self.on = False

    def turn(self, on: bool) -> None:
        self.on = on


class NativeFreeU(FreeUSwitch):
    """diffusers' own: version 1."""

    def turn(self, on: bool) -> None:
        if on != self.on:
            f = self.settings
            self.unet.enable_freeu(f.s1, f.s2, f.b1, f.b2) if on else self.unet.disable_freeu()
        super().turn(on)


@contextmanager
def freeu_attached(
    unet: UNet2DConditionModel, settings: FreeU, with_deepcache: bool
) -> Iterator[FreeUSwitch]:
    """While entered, FreeU can be turned on for the UNet's two deepest resolutions.

    diffusers has version 1 alone, takes a factor of 0 for "off", and scales the features in place, which
    changes DeepCache's stored tensors at each reuse. In these cases the same arithmetic is attached by hooks.
    """
    if (
        settings.version == 1
        and not with_deepcache
        and all((settings.b1, settings.b2, settings.s1, settings.s2))
    ):
        switch = NativeFreeU(unet, settings)
        try:
            yield switch
        finally:
            switch.turn(False)
        return
    switch = FreeUSwitch(unet, settings)
    with ExitStack() as stack:
        width = unet.config.block_out_channels[-1]  # of the features that enter a layer
        for block, factors in zip(
            unet.up_blocks, ((settings.b1, settings.s1), (settings.b2, settings.s2)), strict=False
        ):
            for resnet in block.resnets:
                hook = _hook(switch, width, *factors)
                stack.callback(resnet.register_forward_pre_hook(hook).remove)
                width = resnet.out_channels
        yield switch


def _hook(switch: FreeUSwitch, width: int, b: float, s: float):
    def freeu(module, args):
        if not switch.on:
            return None
        x = args[0]
        h, skip = x.split([width, x.shape[1] - width], 1)
        parts = (
            scale_backbone(h, b, switch.settings.version),
            h[:, width // 2 :],
            scale_low_frequencies(skip, s),
        )
        return (torch.cat(parts, 1), *args[1:])

    return freeu
