"""FreeU (arXiv:2309.11497) on diffusers' UNet: by `enable_freeu`, or by hooks for what that can't do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from diffusers import UNet2DConditionModel

from sdxl_optim.hosts.standalone.site import PipelineSite
from sdxl_optim.sampling.call import UNetCall
from sdxl_optim.settings import FreeU
from sdxl_optim.techniques.freeu.tensors import scale_backbone, scale_low_frequencies

KEY = "freeu"


class NativeFreeU:
    """diffusers' own, version 1, turned on and off from call to call."""

    def __init__(self, unet: UNet2DConditionModel, settings: FreeU):
        self._unet, self._settings = unet, settings
        self._on = False

    def begin(self, call: UNetCall) -> UNetCall:
        """A UNet call begins."""
        self.turn(call.does(KEY))
        return call.with_operation(KEY, self._settings) if self._on else call

    def turn(self, on: bool) -> None:
        if on != self._on:
            f = self._settings
            self._unet.enable_freeu(f.s1, f.s2, f.b1, f.b2) if on else self._unet.disable_freeu()
        self._on = on


class HookedFreeU:
    """FreeU by hooks on layers of the up blocks. layers: (up block, resnet) of each."""

    def __init__(self, settings: FreeU, layers: list[tuple[int, int]]):
        self._settings, self._layers = settings, layers

    def begin(self, call: UNetCall) -> UNetCall:
        """A UNet call begins."""
        acts = call.does(KEY) and not all(map(call.skips, self._layers))
        return call.with_operation(KEY, self._settings) if acts else call


@contextmanager
def freeu_attached(site: PipelineSite, settings: FreeU) -> Iterator[NativeFreeU | HookedFreeU]:
    """Context manager: FreeU acts on the UNet's two deepest resolutions in the calls whose step has it.

    diffusers has version 1 alone, takes a factor of 0 for "off", and scales the features in place, which changes
    DeepCache's stored tensors at each reuse. In these cases the same arithmetic is attached by hooks.
    """
    unet, factors = site.pipe.unet, (settings.b1, settings.b2, settings.s1, settings.s2)
    if settings.version == 1 and site.plan.config("deepcache") is None and all(factors):
        native = NativeFreeU(unet, settings)
        try:
            yield native
        finally:
            native.turn(False)
        return
    layers: list[tuple[int, int]] = []
    with ExitStack() as stack:
        width = unet.config.block_out_channels[-1]  # of the features that enter a layer
        stages = ((settings.b1, settings.s1), (settings.b2, settings.s2))
        for i, (block, (b, s)) in enumerate(zip(unet.up_blocks, stages, strict=False)):
            for k, resnet in enumerate(block.resnets):
                hook = _hook((i, k), width, b, s, settings.version, site.current)
                stack.callback(resnet.register_forward_pre_hook(hook).remove)
                layers.append((i, k))
                width = resnet.out_channels
        yield HookedFreeU(settings, layers)


def _hook(layer: tuple[int, int], width: int, b: float, s: float, version: int, current: Callable):
    def freeu(module, args):
        call = current()
        if call is None or not call.does(KEY) or call.skips(layer):
            return None
        x = args[0]
        h, skip = x.split([width, x.shape[1] - width], 1)
        parts = (scale_backbone(h, b, version), h[:, width // 2 :], scale_low_frequencies(skip, s))
        return (torch.cat(parts, 1), *args[1:])

    return freeu
