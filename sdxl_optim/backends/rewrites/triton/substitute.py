"""Where a block is traced for inductor: the operations that our own Triton kernels stand in for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from sdxl_optim.backends.rewrites.layer_rewrite import LayerRewrite, itself, replacements
from sdxl_optim.backends.rewrites.layers import is_geglu, is_group_norm
from sdxl_optim.unet.patching import forwards_replaced


@contextmanager
def kernels_substituted(block: nn.Module, given: Sequence[torch.Tensor]) -> Iterator[None]:
    """Context manager: `block` attends, gates and normalises the tensors that it is `given` by our own kernels, if it
    is on a card on which they are faster than torch's."""
    kernels = _kernels() if _is_on_a_card(given[0]) else None
    if kernels is None:
        yield
        return
    hopper = _hopper(given[0].device)
    rewrites = [LayerRewrite(is_group_norm, itself(partial(_group_norm, kernels, given)))]
    if hopper is not None:
        rewrites.append(LayerRewrite(is_geglu, itself(partial(_geglu, hopper))))
    with forwards_replaced(replacements(block, rewrites)), _Attention(kernels, hopper):
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
    """The kernels for a Hopper card, if `device` is one."""
    try:
        from sdxl_optim.backends.rewrites.triton import hopper
    except ImportError:  # a Triton without tensor descriptors
        return None
    return hopper if hopper.is_hopper(device) else None


def _group_norm(kernels: ModuleType, given: Sequence[torch.Tensor], norm: nn.GroupNorm, original: Callable, x):
    """A tensor that is not `given` is computed and normalised by one kernel of the compiler, which is faster."""
    if any(x is t for t in given) and x.is_contiguous(memory_format=torch.channels_last):
        return kernels.group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps)
    return original(x)


def _geglu(hopper: ModuleType, layer: nn.Module, original: Callable, x):
    proj: Any = layer.proj
    weight, bias = proj.weight, proj.bias
    if bias is not None and hopper.takes_geglu(x, weight):
        return hopper.geglu(x, weight, bias)
    return original(x)


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
