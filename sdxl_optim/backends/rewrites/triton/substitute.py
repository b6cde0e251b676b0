"""Where a block is traced for inductor: the operations that our own Triton kernels stand in for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from importlib.util import find_spec
from types import ModuleType

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from sdxl_optim.backends.rewrites.layers import is_geglu
from sdxl_optim.unet.patching import forwards_replaced


@contextmanager
def kernels_substituted(block: nn.Module, given: Sequence[torch.Tensor]) -> Iterator[None]:
    """While entered, `block` attends, gates and normalises what it is `given` by our own kernels, where it is on a card
    and they are faster there than torch's."""
    kernels = _kernels() if _is_on_a_card(given[0]) else None
    if kernels is None:
        yield
        return
    hopper = _hopper(given[0].device)
    norms = [(module, _norm_of(module, given, kernels)) for module in block.modules() if _is_norm(module)]
    gates = [(module, _geglu_of(module, hopper)) for module in block.modules() if hopper and is_geglu(module)]
    with forwards_replaced([*norms, *gates]), _Attention(kernels, hopper):
        yield


def _is_on_a_card(tensor: torch.Tensor) -> bool:
    return tensor.is_cuda and torch.version.hip is None


@lru_cache
def _kernels() -> ModuleType | None:
    if find_spec("triton") is None or not hasattr(torch.library, "custom_op"):
        return None
    from sdxl_optim.backends.rewrites.triton import kernels

    return kernels


@lru_cache
def _hopper(device: torch.device) -> ModuleType | None:
    """The kernels for this card alone."""
    try:
        from sdxl_optim.backends.rewrites.triton import hopper
    except ImportError:  # a Triton without tensor descriptors
        return None
    return hopper if hopper.is_hopper(device) else None


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.GroupNorm) and module.weight is not None


def _norm_of(norm: nn.GroupNorm, given: Sequence[torch.Tensor], kernels: ModuleType):
    """What is not given is better computed, and normalised, by one kernel of the compiler's."""

    def make(original):
        def forward(x):
            if any(x is t for t in given) and x.is_contiguous(memory_format=torch.channels_last):
                return kernels.group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps)
            return original(x)

        return forward

    return make


def _geglu_of(layer: nn.Module, hopper: ModuleType):
    def make(original):
        def forward(x):
            weight, bias = layer.proj.weight, layer.proj.bias
            if bias is not None and hopper.takes_geglu(x, weight):
                return hopper.geglu(x, weight, bias)
            return original(x)

        return forward

    return make


class _Attention(TorchFunctionMode):
    def __init__(self, kernels: ModuleType, hopper: ModuleType | None):
        super().__init__()
        self._kernels, self._hopper = kernels, hopper

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is nn.functional.scaled_dot_product_attention and _is_plain(*args, **(kwargs or {})):
            q, k, v = (*args, *(kwargs or {}).values())[:3]
            if self._kernels.takes_short_attention(q, k):
                return self._kernels.short_attention(q, k, v)
            if self._hopper is not None and self._hopper.takes_attention(q, k, v):
                return self._hopper.attention(q, k, v)
        return func(*args, **(kwargs or {}))


def _is_plain(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, **more) -> bool:
    return attn_mask is None and not dropout_p and not is_causal and not any(more.values())
