"""Layers of a UNet whose own kernels leave a fast card idle, as other operations of torch. No compiler is needed.

They are used while a call runs in half precision without autocast. The results are those of the layers' own forward
within rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from sdxl_optim.backends.rewrites.layer_rewrite import LayerRewrite, itself
from sdxl_optim.backends.rewrites.weight_layout import FusedLinear, packed_weight, qkv_of

LARGE = 1024  # channels of a convolution that reads more bytes of weights than of pictures
LONG_GROUP = 1 << 15  # numbers in a group from which the idle multiprocessors are worth spreading the sums over


def is_group_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.GroupNorm) and module.weight is not None


def is_geglu(module: nn.Module) -> bool:
    """Whether it is the GEGLU of the ldm/sgm layout, or of diffusers."""
    return type(module).__name__ == "GEGLU" and isinstance(getattr(module, "proj", None), nn.Linear)


def is_large_convolution(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and min(module.weight.shape[:2]) >= LARGE


def fused_qkv(weight_of: Callable[[list[nn.Linear]], torch.Tensor | None]) -> LayerRewrite:
    """Queries, keys and values of a self-attention as one product. weight_of: of the three layers, their weights as one
    tensor, or None to leave them alone."""

    def make(attention: nn.Module):
        layers = qkv_of(attention) or []
        weight = weight_of(layers) if layers else None
        return [] if weight is None else FusedLinear(layers, weight).forwards()

    return LayerRewrite(qkv_of, make)


def _in_given_format(convolution: nn.Conv2d, original: Callable, x: torch.Tensor) -> torch.Tensor:
    """A convolution with channels-last weights puts out channels-last: here its output is in its input's format."""
    out = original(x)
    return out.contiguous() if x.is_contiguous() else out


def _group_norm(norm: nn.GroupNorm, original: Callable, x: torch.Tensor) -> torch.Tensor:
    if type(x) is torch.Tensor and x.is_cuda and x.is_contiguous() and few_groups(x, norm.num_groups):
        return spread_group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps)
    return F.group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps)


def few_groups(x: torch.Tensor, groups: int) -> bool:
    """Whether torch, which gives each group of each picture to one multiprocessor, would leave most of them idle."""
    return x.shape[0] * groups < multiprocessors(x.device) and x[0].numel() // groups >= LONG_GROUP


@lru_cache
def multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


def spread_group_norm(x: torch.Tensor, groups: int, weight, bias, eps: float) -> torch.Tensor:
    """Group norm whose sums are spread over the whole card. x: [B, C, H, W], contiguous; sums are in fp32."""
    rows, channels = x.shape[:2]
    grouped = x.reshape(rows * groups, -1)
    mean = grouped.sum(1, dtype=torch.float32) / grouped.shape[1]
    square = torch.linalg.vector_norm(grouped, dim=1, dtype=torch.float32).square() / grouped.shape[1]
    var = torch.addcmul(square, mean, mean, value=-1).clamp_min(0)

    def of_channels(t):
        return t[:, None].expand(-1, channels // groups).reshape(-1)

    weight, bias = (t.expand(rows, channels).reshape(-1).float() for t in (weight, bias))
    flat = x.reshape(1, rows * channels, -1)
    out, _, _ = torch.native_batch_norm(flat, weight, bias, of_channels(mean), of_channels(var), False, 0.0, eps)
    return out.reshape(x.shape)


def _geglu(layer: nn.Module, original: Callable, x: torch.Tensor) -> torch.Tensor:
    proj: Any = layer.proj
    if type(x) is not torch.Tensor or not x.is_cuda or proj.bias is None:
        value, gate = proj(x).chunk(2, -1)
        return value * F.gelu(gate)
    return geglu(x, proj.weight, proj.bias)


def geglu(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """GEGLU (https://arxiv.org/abs/2002.05202) whose GELU is computed as its product is written, by the approximation
    with tanh, which is off by less than half precision's last digit. x: [..., C] → [..., weight.shape[0] / 2]"""
    hidden = weight.shape[0] // 2
    flat = x.reshape(-1, x.shape[-1])
    gate = torch._addmm_activation(bias[hidden:], flat, weight[hidden:].t(), use_gelu=True)
    return F.linear(x, weight[:hidden], bias[:hidden]) * gate.reshape(*x.shape[:-1], hidden)


CAPTURE_FRIENDLY_LAYERS = (
    LayerRewrite(is_group_norm, itself(_group_norm)),
    LayerRewrite(is_geglu, itself(_geglu)),
    LayerRewrite(is_large_convolution, itself(_in_given_format)),
    fused_qkv(packed_weight),
)
