"""Weights stored in 8 bits (float8_e4m3fn); each layer computes with them in its own precision.

The format: https://arxiv.org/abs/2209.05433. A layer with weights beyond its range stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from sdxl_optim.wording import Text, message

LAYERS = (nn.Linear, nn.Conv2d)
LARGEST = 448.0  # the largest value of float8_e4m3fn, which has no infinity


def why_not() -> Text | None:
    """Why this torch can't store weights so, or None."""
    if not hasattr(torch, "float8_e4m3fn"):
        text = "torch {version} has no float8_e4m3fn; {least} or newer has"
        return message(text, version=torch.__version__, least="2.1")
    return None


def layers_of(module: nn.Module) -> list[nn.Linear | nn.Conv2d]:
    return [m for m in module.modules() if isinstance(m, LAYERS) and m.weight.is_floating_point()]


class Fp8Weights:
    """Until closed, the weights of the module's Linear and Conv2d layers are stored in 8 bits.

    on_layer: called with each layer before its weight is stored; it takes out what was merged into the weight.
    pending: whether a LoRA is to be merged into a layer. merge: merges it. It gets the original weight, and the result
    is stored: small changes would be lost between the steps of rounded weights.
    skipped: the number of layers that stay as they are.
    """

    def __init__(
        self,
        module: nn.Module,
        on_layer: Callable[[nn.Module], None] = lambda layer: None,
        pending: Callable[[nn.Module], bool] = lambda layer: False,
        merge: Callable[[nn.Module], object] = lambda layer: None,
    ):
        self._pending, self._merge = pending, merge
        self.originals: dict[nn.Linear | nn.Conv2d, torch.Tensor] = {}
        self.skipped = 0
        self._hooks = []
        self._stored: dict[nn.Module, tuple[torch.Tensor, int]] = {}
        for layer in layers_of(module):
            on_layer(layer)
            weight = layer.weight
            if weight.dtype == torch.float8_e4m3fn or weight.data.abs().amax() > LARGEST:
                self.skipped += 1
                continue
            self.originals[layer] = weight.data.to("cpu", copy=True)
            weight.data = weight.data.to(torch.float8_e4m3fn)
            self._hooks.append(layer.register_forward_pre_hook(self._before))
            self._hooks.append(layer.register_forward_hook(self._after, always_call=True))

    @property
    def bytes_saved(self) -> int:
        return sum(w.nbytes - w.numel() for w in self.originals.values())

    def close(self, on_layer: Callable[[nn.Module], None] = lambda layer: None) -> None:
        """Put the original weights back, on the device where each layer is now.

        on_layer: called with each layer afterwards.
        """
        for hook in self._hooks:
            hook.remove()
        for layer, original in self.originals.items():
            weight = layer.weight
            if weight.device.type != "meta":
                weight.data = original.to(weight.device, copy=True)
                on_layer(layer)
        self.originals.clear()

    def _before(self, layer, args) -> None:
        weight = layer.weight
        if weight.dtype == torch.float8_e4m3fn:
            stored = weight.data
            original = self.originals[layer]
            if self._pending(layer):
                weight.data = original.to(stored.device, copy=True)
                self._merge(layer)
                _store(weight.data, stored)
            weight.data = stored.to(original.dtype)
            self._stored[layer] = stored, weight._version

    def _after(self, layer, args, output) -> None:
        if layer not in self._stored:
            return
        stored, version = self._stored.pop(layer)
        weight = layer.weight
        if weight._version != version:  # it was changed in the call
            _store(weight.data, stored)
        weight.data = stored


def _store(weight: torch.Tensor, stored: torch.Tensor) -> None:
    stored.copy_(weight.clamp(-LARGEST, LARGEST))
