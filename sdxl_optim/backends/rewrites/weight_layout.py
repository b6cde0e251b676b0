"""How weights lie in memory while calls are prepared. Their values, shapes and types stay the same, and so does the
host's model: a LoRA merges into them as always.

Convolutions have channels-last weights, as a card's matrix units read them; otherwise each call would convert them.
Layers that read the same tensor have their weights packed side by side, so that their products can be one: the three of
a self-attention, and all keys and values that a row of transformer blocks makes of the text.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

QKV = ("to_q", "to_k", "to_v")  # in an attention of the ldm/sgm layout, and of diffusers


@dataclass(frozen=True)
class WeightLayout:
    """The layout that a backend wants. channels_last_from: convolutions with at least that many channels on both sides
    have channels-last weights."""

    channels_last_from: int

    def apply(self, unet: nn.Module, applied: AppliedLayout) -> None:
        for module in unet.modules():
            if isinstance(module, nn.Conv2d) and min(module.weight.shape[:2]) >= self.channels_last_from:
                applied.make_channels_last(module)
            elif (layers := qkv_of(module) or text_kv_of(module)) and packed_weight(layers) is None:
                applied.pack(layers)


class AppliedLayout:
    """The changes to a UNet's layout. They are repeated after the host has moved the weights. Its length is the number
    of changed layers; it keeps none of them alive."""

    def __init__(self):
        self._changed: weakref.WeakKeyDictionary[nn.Module, Callable] = weakref.WeakKeyDictionary()

    def __len__(self) -> int:
        return len(self._changed)

    def make_channels_last(self, layer: nn.Conv2d) -> None:
        if layer.weight.is_contiguous() and not layer.weight.is_contiguous(memory_format=torch.channels_last):
            layer.weight.data = layer.weight.data.contiguous(memory_format=torch.channels_last)
            self._changed[layer] = torch.Tensor.contiguous

    def pack(self, layers: list[nn.Linear]) -> None:
        parts = torch.cat([layer.weight.data for layer in layers]).chunk(len(layers))
        for layer, part in zip(layers, parts, strict=True):
            layer.weight.data = part
            self._changed[layer] = torch.Tensor.clone

    def undo(self) -> None:
        """Give every weight a storage of its own again, in torch's default format."""
        for layer, as_it_was in list(self._changed.items()):
            layer.weight.data = as_it_was(layer.weight.data)
            del self._changed[layer]


def qkv_of(module: nn.Module | None) -> list[nn.Linear] | None:
    """`to_q`, `to_k`, `to_v` of a self-attention, or None."""
    layers: list[Any] = [getattr(module, name, None) for name in QKV]
    return layers if _are_alike(layers) else None


def text_kv_of(module: nn.Module) -> list[nn.Linear] | None:
    """`to_k` and `to_v` of all cross-attentions in a row of transformer blocks, or None."""
    attentions: list[Any] = [getattr(block, "attn2", None) for block in getattr(module, "transformer_blocks", ())]
    layers: list[Any] = [getattr(attention, name, None) for attention in attentions for name in QKV[1:]]
    return layers if _are_alike(layers) and not any(map(qkv_of, attentions)) else None


def _are_alike(layers: list) -> bool:
    if not (layers and all(isinstance(layer, nn.Linear) and layer.bias is None for layer in layers)):
        return False
    first = layers[0].weight
    return all(layer.weight.shape == first.shape and layer.weight.dtype == first.dtype for layer in layers)


def packed_weight(layers: list[nn.Linear]) -> torch.Tensor | None:
    """The layers' weights as one view, [sum of their outputs, inputs], if they lie side by side; None otherwise."""
    if not _are_alike(layers):
        return None
    first = layers[0].weight
    addresses = (first.data_ptr() + k * first.nbytes for k in range(len(layers)))
    adjacent = all(
        layer.weight.data_ptr() == address and layer.weight.is_contiguous()
        for layer, address in zip(layers, addresses, strict=True)
    )
    if not adjacent or first.untyped_storage().data_ptr() != layers[-1].weight.untyped_storage().data_ptr():
        return None
    rows, columns = first.shape
    return first.detach().as_strided((len(layers) * rows, columns), (columns, 1))


class FusedLinear:
    """The layers' forwards as parts of one product with `weight`, as long as all of them are given the same tensor."""

    def __init__(self, layers: list[nn.Linear], weight: torch.Tensor):
        self._layers, self._weight = layers, weight
        self._given: torch.Tensor | None = None
        self._results: list = []  # a tensor a layer, None once it was served

    @property
    def pending(self) -> int:
        """Results of the last product that no layer has taken yet."""
        return sum(result is not None for result in self._results)

    def forwards(self) -> Iterator[tuple[nn.Linear, Callable]]:
        """(layer, make) for `forwards_replaced`."""
        for k, layer in enumerate(self._layers):
            yield layer, lambda original, k=k: lambda x: self._result(k, x, original)

    def _result(self, k: int, x: torch.Tensor, original: Callable) -> torch.Tensor:
        if k == 0:
            self._given = x
            self._results = list(nn.functional.linear(x, self._weight).chunk(len(self._layers), -1))
        elif x is not self._given:
            return original(x)
        result = self._results[k]
        self._results[k] = None
        if not self.pending:
            self._given, self._results = None, []
        return result
