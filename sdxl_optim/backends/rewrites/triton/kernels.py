"""Triton kernels for the parts of SDXL's blocks that inductor leaves slow on a fast card. They need Triton, and a torch
with custom operators (2.4).

Importing this module registers them as torch operators, so that they can be traced, compiled around and captured.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from sdxl_optim.backends.api import HALF

MOST_KEYS = 128  # short_attention holds all of them at once
ROWS = 64  # queries in one program of short_attention
CHANNELS = 64  # of one program of group_statistics
MOST_PARTS = 128  # into which group_statistics divides a picture's pixels


@triton.jit
def _short_attention(
    Q, K, V, Out, scale, heads, n, keys,
    qb, qh, qn, kb, kh, kn, vb, vh, vn, ob, oh, on,
    BLOCK: tl.constexpr, KEYS: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    batch, head = tl.program_id(1) // heads, tl.program_id(1) % heads
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    columns, d = tl.arange(0, KEYS), tl.arange(0, D)
    here, there = (rows < n)[:, None], (columns < keys)[:, None]
    q = tl.load(Q + batch * qb + head * qh + rows[:, None] * qn + d[None, :], mask=here, other=0.0)
    k = tl.load(K + batch * kb + head * kh + columns[:, None] * kn + d[None, :], mask=there, other=0.0)
    v = tl.load(V + batch * vb + head * vh + columns[:, None] * vn + d[None, :], mask=there, other=0.0)
    scores = tl.where((columns < keys)[None, :], tl.dot(q, tl.trans(k)) * scale, float("-inf"))
    weights = tl.exp(scores - tl.max(scores, 1)[:, None])
    out = tl.dot(weights.to(v.dtype), v) / tl.sum(weights, 1)[:, None]
    tl.store(Out + batch * ob + head * oh + rows[:, None] * on + d[None, :], out.to(Out.dtype.element_ty), mask=here)


@torch.library.custom_op("sdxl_optim::short_attention", mutates_args=())
def short_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Scaled dot product attention over at most 128 keys, such as a text's 77, none of which is masked.

    q: [B, heads, N, D]; k, v: [B, heads, keys, D]; half precision, D a power of two from 16. Returns [B, heads, N, D],
    which lies as [B, N, heads, D]. Weights are in fp32 up to their product with v.
    """
    q, k, v = (t if t.stride(-1) == 1 else t.contiguous() for t in (q, k, v))
    out = empty_for(q)
    b, heads, n, d = q.shape
    strides = [stride for t in (q, k, v, out) for stride in t.stride()[:3]]
    grid = (triton.cdiv(n, ROWS), b * heads)
    keys = max(16, triton.next_power_of_2(k.shape[2]))
    _short_attention[grid](q, k, v, out, d**-0.5, heads, n, k.shape[2], *strides, ROWS, keys, d)
    return out


@short_attention.register_fake
def _(q, k, v):
    return empty_for(q)


def empty_for(q: torch.Tensor) -> torch.Tensor:
    b, heads, n, d = q.shape
    return q.new_empty(b, n, heads, d).transpose(1, 2)


def takes_short_attention(q: torch.Tensor, k: torch.Tensor) -> bool:
    return has_heads(q) and k.shape[2] <= MOST_KEYS


def has_heads(q: torch.Tensor) -> bool:
    """Whether q is [B, heads, N, D] in half precision, with a D that a kernel holds at once."""
    d = q.shape[-1]
    return q.dim() == 4 and q.dtype in HALF and 16 <= d <= 128 and d & (d - 1) == 0


@triton.jit
def _partial_statistics(X, Mean, Square, pixels, channels, parts, PART: tl.constexpr, BLOCK: tl.constexpr):
    """Of each channel in a part of the pixels: the mean, and the sum of squared distances from it."""
    p, c, b = tl.program_id(0), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK), tl.program_id(2)
    pixel = p * PART + tl.arange(0, PART)
    mask = (pixel < pixels)[:, None] & (c < channels)[None, :]
    x = tl.load(X + (b * pixels + pixel[:, None]) * channels + c[None, :], mask=mask, other=0.0)
    x = x.to(tl.float32)
    count = tl.minimum(PART, pixels - p * PART)
    mean = tl.sum(x, 0) / count
    far = tl.where(mask, x - mean[None, :], 0.0)
    place = (b * parts + p) * channels + c
    tl.store(Mean + place, mean, mask=c < channels)
    tl.store(Square + place, tl.sum(far * far, 0), mask=c < channels)


@triton.jit
def _join_statistics(
    Mean, Square, OutMean, OutRstd, pixels, channels, part, parts, groups, eps,
    PARTS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    g, b = tl.program_id(0), tl.program_id(1)
    width = channels // groups
    p, c = tl.arange(0, PARTS), tl.arange(0, WIDTH)
    mask = (p < parts)[:, None] & (c < width)[None, :]
    place = (b * parts + p[:, None]) * channels + g * width + c[None, :]
    means = tl.load(Mean + place, mask=mask, other=0.0)
    squares = tl.load(Square + place, mask=mask, other=0.0)
    counts = tl.minimum(part, pixels - p * part).to(tl.float32)[:, None]
    total = pixels * width
    mean = tl.sum(tl.where(mask, means * counts, 0.0)) / total
    far = tl.where(mask, means - mean, 0.0)
    var = (tl.sum(squares) + tl.sum(far * far * tl.where(mask, counts, 0.0))) / total
    tl.store(OutMean + b * groups + g, mean)
    tl.store(OutRstd + b * groups + g, 1.0 / tl.sqrt(var + eps))


@torch.library.custom_op("sdxl_optim::group_statistics", mutates_args=())
def group_statistics(x: torch.Tensor, groups: int, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    """(mean, 1 / standard deviation) of each group of a group norm, [B, groups] in fp32.

    x: [B, C, H, W], channels-last.
    """
    x = x.contiguous(memory_format=torch.channels_last)
    b, channels, height, width = x.shape
    pixels = height * width
    part = max(64 if pixels <= 2048 else 128, triton.next_power_of_2(triton.cdiv(pixels, MOST_PARTS)))
    parts = triton.cdiv(pixels, part)
    means, squares = (x.new_empty(b, parts, channels, dtype=torch.float32) for _ in range(2))
    mean, rstd = (x.new_empty(b, groups, dtype=torch.float32) for _ in range(2))
    grid = (parts, triton.cdiv(channels, CHANNELS), b)
    _partial_statistics[grid](x, means, squares, pixels, channels, parts, part, CHANNELS, num_warps=max(2, part // 128))
    sizes = triton.next_power_of_2(parts), triton.next_power_of_2(channels // groups)
    _join_statistics[(groups, b)](means, squares, mean, rstd, pixels, channels, part, parts, groups, eps, *sizes)
    return mean, rstd


@group_statistics.register_fake
def _(x, groups, eps):
    return tuple(x.new_empty(x.shape[0], groups, dtype=torch.float32) for _ in range(2))


def group_norm(x: torch.Tensor, groups: int, weight: torch.Tensor, bias: torch.Tensor, eps: float) -> torch.Tensor:
    """torch's group norm. x: [B, C, H, W], channels-last."""
    mean, rstd = group_statistics(x, groups, eps)
    b, channels = x.shape[:2]
    scale = weight.float().view(1, groups, -1) * rstd[:, :, None]
    shift = bias.float().view(1, groups, -1) - scale * mean[:, :, None]
    scale, shift = (t.reshape(b, channels, 1, 1) for t in (scale, shift))
    return (x.float() * scale + shift).to(x.dtype)
