"""The WebUI's built-in LoRA, which merges into the weights of a layer when that layer is called."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import nn

from modules import shared
from sdxl_optim.backends.api import CannotPrepare

# The types of the layers into whose weights it merges (extensions-builtin/Lora/networks.py).
MERGED_LAYERS = (nn.Linear, nn.Conv2d, nn.GroupNorm, nn.LayerNorm, nn.MultiheadAttention)


def networks() -> Any:
    """The built-in extension's module, or None where it is off."""
    return sys.modules.get("networks")


def loaded_loras() -> tuple:
    """What the weights should have merged: the value of a layer's `network_current_names` once it has."""
    found = networks()
    if found is None:
        return ()
    return tuple((n.name, n.te_multiplier, n.unet_multiplier, n.dyn_dim) for n in found.loaded_networks)


def merged_loras(layer: nn.Module) -> tuple:
    """What the layer's weights have merged."""
    return getattr(layer, "network_current_names", ())


def merge_pending(layer: nn.Module) -> bool:
    """Whether the WebUI will change this layer's weights at its next call."""
    if networks() is None or shared.opts.lora_functional or getattr(layer, "network_layer_name", None) is None:
        return False
    return merged_loras(layer) != loaded_loras()


def merge(layer: nn.Module) -> None:
    """Do what the WebUI would do when the layer is called; it then finds its work done."""
    networks().network_apply_weights(layer)


def unmerge(layer: Any) -> None:
    """Give the layer its own weights back. The WebUI merges what it wants when the layer is called again."""
    if networks() is None or not merged_loras(layer):
        return
    with torch.no_grad():
        networks().network_restore_weights_from_backup(layer)
    layer.network_current_names = ()
    layer.network_weights_backup = layer.network_bias_backup = None


class Merges:
    """Merges LoRAs into a whole UNet, whose layers need not be asked again at each call."""

    def __init__(self):
        self._last: tuple[int, tuple] | None = None  # id of the UNet, and what was merged into its layers

    def apply(self, unet: nn.Module) -> None:
        """Merge the LoRAs that the WebUI would otherwise merge when the layers are called.

        Raises CannotPrepare if they are no part of the weights.
        """
        if networks() is None:
            return
        wanted = loaded_loras()
        if wanted and shared.opts.lora_functional:
            raise CannotPrepare("the setting lora_functional applies LoRAs in each call")
        first = next(m for m in unet.modules() if isinstance(m, MERGED_LAYERS))
        if self._last != (id(unet), wanted) or merged_loras(first) != wanted:
            for module in unet.modules():
                if isinstance(module, MERGED_LAYERS):
                    merge(module)
            self._last = id(unet), wanted
