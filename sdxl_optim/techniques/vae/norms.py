"""Group norms with the statistics of a whole picture, for tiles of it.

A group norm takes mean and variance over all of what it sees. In a tile that is the tile, which is nearly all of what
sets a tiled decode apart from the untiled one. As means and variances hardly depend on the resolution, a small version
of the picture gives those of the whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from torch import nn

from sdxl_optim.unet.patching import forwards_replaced

Statistics = dict[nn.GroupNorm, tuple[torch.Tensor, torch.Tensor]]  # mean and variance, [B, groups] in fp32


def reduced(x: torch.Tensor, tile: int, unit: int) -> torch.Tensor:
    """x: [B, C, H, W] → the same, scaled down to at most tile × tile units of `unit` values along a side.

    Values are picked, not averaged: an average would take fine detail out, and with it variance.
    """
    height, width = (n // unit for n in x.shape[-2:])
    scale = min(1.0, tile / math.sqrt(height * width))
    for dim, n in ((-2, height), (-1, width)):
        x = _picked(x, dim, max(int(n * scale), 1) * unit)
    return x


def _picked(x: torch.Tensor, dim: int, count: int) -> torch.Tensor:
    """Values in the middles of `count` equal stretches. Interpolation does it, but in older torch not in bf16."""
    middles = (2 * torch.arange(count, device=x.device) + 1) * x.shape[dim] // (2 * count)
    return x.index_select(dim, middles)


def statistics_of(module: nn.Module, run: Callable[[], object]) -> Statistics:
    """What each group norm inside `module` sees while `run` calls it once."""
    seen: Statistics = {}

    def sdxl_optim_statistics(norm, args):
        seen[norm] = _mean_and_variance(args[0], norm.num_groups)

    with ExitStack() as hooks:
        for norm in _norms(module):
            hooks.callback(norm.register_forward_pre_hook(sdxl_optim_statistics).remove)
        run()
    return seen


@contextmanager
def norms_with(statistics: Statistics) -> Iterator[None]:
    """While entered, these group norms use these statistics instead of those of what they are called with."""
    with forwards_replaced((norm, partial(_forward, norm, *found)) for norm, found in statistics.items()):
        yield


def _norms(module: nn.Module) -> list[nn.GroupNorm]:
    return [m for m in module.modules() if isinstance(m, nn.GroupNorm)]


def _mean_and_variance(x: torch.Tensor, groups: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Of x [B, C, …], group by group, so that no more than a group is there in fp32."""
    found = [torch.var_mean(part.float().flatten(1), 1, unbiased=False) for part in x.chunk(groups, 1)]
    return torch.stack([mean for _, mean in found], 1), torch.stack([variance for variance, _ in found], 1)


def _forward(norm: nn.GroupNorm, mean: torch.Tensor, variance: torch.Tensor, original: Callable) -> Callable:
    """A batch norm in evaluation is the same arithmetic with statistics that are given; a picture's channel is one of
    its channels."""

    def forward(x: torch.Tensor) -> torch.Tensor:
        rows, width = x.shape[0], norm.num_channels // norm.num_groups
        mean_, variance_ = (t.to(x.device).repeat_interleave(width, 1).flatten() for t in (mean, variance))
        weight, bias = (t.float().repeat(rows) if t is not None else None for t in (norm.weight, norm.bias))
        rows_as_channels = x.reshape(1, -1, *x.shape[2:])
        out = nn.functional.batch_norm(rows_as_channels, mean_, variance_, weight, bias, False, 0.0, norm.eps)
        return out.view(x.shape)

    return forward
