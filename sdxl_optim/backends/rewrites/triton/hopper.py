"""Triton kernels for a Hopper card (H100, H200), whose copy engine loads tiles by tensor descriptors. Other cards do
not run them: other kernels are fastest there, and a program has less memory.

They need a Triton with such descriptors (3.4, which comes with torch 2.8). Importing this module registers them as
torch operators, as kernels.py does.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from sdxl_optim.backends.api import HALF
from sdxl_optim.backends.rewrites.layers import multiprocessors
from sdxl_optim.backends.rewrites.triton.kernels import empty_for, has_heads

LOG2_E = 1 / math.log(2)
# GELU by the approximation with tanh (https://arxiv.org/abs/1606.08415) is x (1 + tanh(y)) / 2, where
# y = sqrt(2 / pi) (x + 0.044715 x³). It is x / (1 + 2^(-2 y log2 e)), and 2 y log2 e is GELU_X x + GELU_X3 x³.
GELU_X = 2 * math.sqrt(2 / math.pi) * LOG2_E
GELU_X3 = 0.044715 * GELU_X
TOKENS, HIDDEN, CHANNELS = 128, 64, 64  # a tile of geglu's output, and the channels summed up in one step
GROUP = 16  # geglu's tiles that run together
MOST_TOKENS = 2048  # of a picture; over more cuDNN's attention is faster
QUERIES, KEYS = 64, 128  # queries in one program of attention, keys in one of its steps
MOST_WAVES = 3  # of such programs, one a multiprocessor; with more cuDNN's attention is faster


@lru_cache
def is_hopper(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device)[0] == 9


@triton.jit
def _geglu(
    X, Weight, Bias, Out, tokens, hidden, channels, programs,
    M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, GROUP: tl.constexpr,
    GELU_X: tl.constexpr, GELU_X3: tl.constexpr,
):  # fmt: skip
    """Each program computes tile after tile, and loads for the next one while it stores. Tiles are in groups of GROUP
    along the tokens, so that tiles that run together read the same weights. A tile's values and gates are one product:
    two products of half the width would wait for the memory of their operands."""
    across, along = tl.cdiv(hidden, N), tl.cdiv(tokens, M)
    in_group = GROUP * across
    for tile in tl.range(tl.program_id(0), across * along, programs, flatten=True):
        first = tile // in_group * GROUP
        rows = min(along - first, GROUP)
        m = (first + tile % in_group % rows) * M
        n = tile % in_group // rows * N
        both = tl.zeros((M, 2 * N), tl.float32)
        for k in range(0, channels, K):
            both = tl.dot(X.load([m, k]), Weight.load([0, n, k]).reshape(2 * N, K).T, both)
        value, gate = both.reshape(M, 2, N).permute(0, 2, 1).split()
        column = n + tl.arange(0, N)
        value += tl.load(Bias + column, mask=column < hidden, other=0.0)[None, :].to(tl.float32)
        gate += tl.load(Bias + hidden + column, mask=column < hidden, other=0.0)[None, :].to(tl.float32)
        # Dividing by 1 + 2^… is slower than multiplying by the inverse of its square root twice.
        root = tl.rsqrt(1.0 + tl.exp2(gate * (-GELU_X - GELU_X3 * gate * gate)))
        Out.store([m, n], (value * gate * root * root).to(Out.dtype))


@torch.library.custom_op("sdxl_optim::geglu", mutates_args=())
def geglu(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """GEGLU (https://arxiv.org/abs/2002.05202), product and gate at once; its GELU is the approximation with tanh.

    x: [..., C]; weight: [2 H, C], contiguous; bias: [2 H]; half precision. Returns [..., H].
    """
    out = _gated(x, weight)
    flat, hidden = x.reshape(-1, x.shape[-1]), out.shape[-1]
    tokens, channels = flat.shape
    tiles = triton.cdiv(tokens, TOKENS) * triton.cdiv(hidden, HIDDEN)
    programs = min(tiles, 2 * multiprocessors(x.device))  # as many as a card holds at once
    given = TensorDescriptor.from_tensor(flat, [TOKENS, CHANNELS])
    weights = TensorDescriptor.from_tensor(weight.view(2, hidden, channels), [2, HIDDEN, CHANNELS])
    result = TensorDescriptor.from_tensor(out.view(tokens, hidden), [TOKENS, HIDDEN])
    numbers = tokens, hidden, channels, programs, TOKENS, HIDDEN, CHANNELS, GROUP, GELU_X, GELU_X3
    _geglu[(programs,)](given, weights, bias, result, *numbers, num_warps=4, num_stages=3)
    return out


@geglu.register_fake
def _(x, weight, bias):
    return _gated(x, weight)


def _gated(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0] // 2)


def takes_geglu(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Rows have to begin where the copy engine can."""
    rows_fit = weight.is_contiguous() and x.shape[-1] % 8 == 0 and weight.shape[0] % 16 == 0
    return x.dtype in HALF and weight.dtype == x.dtype and rows_fit


@triton.jit
def _attention(Q, K, V, Out, heads, keys, scale, ROWS: tl.constexpr, COLUMNS: tl.constexpr, D: tl.constexpr):
    batch, head, row = tl.program_id(1) // heads, tl.program_id(1) % heads, tl.program_id(0) * ROWS
    q = Q.load([batch, head, row, 0]).reshape(ROWS, D)
    most = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    out = tl.zeros((ROWS, D), tl.float32)
    for column in range(0, keys, COLUMNS):
        scores = tl.dot(q, K.load([batch, head, column, 0]).reshape(COLUMNS, D).T) * scale
        scores = tl.where((column + tl.arange(0, COLUMNS) < keys)[None, :], scores, float("-inf"))
        higher = tl.maximum(most, tl.max(scores, 1))
        weights = tl.exp2(scores - higher[:, None])
        shrinks = tl.exp2(most - higher)
        total = total * shrinks + tl.sum(weights, 1)
        v = V.load([batch, head, column, 0]).reshape(COLUMNS, D)
        out = tl.dot(weights.to(v.dtype), v, out * shrinks[:, None])
        most = higher
    Out.store([batch, head, row, 0], (out / total[:, None]).to(Out.dtype).reshape(1, 1, ROWS, D))


@torch.library.custom_op("sdxl_optim::attention", mutates_args=())
def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Scaled dot product attention, none of whose keys is masked, by the way of FlashAttention-2
    (https://arxiv.org/abs/2307.08691).

    q, k, v: [B, heads, N, D]; half precision, D a power of two from 16. Returns [B, heads, N, D], which lies as
    [B, N, heads, D].
    """
    out = empty_for(q)
    b, heads, n, d = q.shape
    programs = triton.cdiv(n, QUERIES), b * heads
    tiles = [_tiles(t, rows) for t, rows in ((q, QUERIES), (k, KEYS), (v, KEYS), (out, QUERIES))]
    scale, sizes = d**-0.5 * LOG2_E, (QUERIES, KEYS, d)
    _attention[programs](*tiles, heads, k.shape[2], scale, *sizes, num_warps=4, num_stages=2)
    return out


def _tiles(t: torch.Tensor, rows: int) -> TensorDescriptor:
    """Of [B, heads, N, D]: so many rows of a head."""
    return TensorDescriptor(t, list(t.shape), list(t.stride()), [1, 1, rows, t.shape[3]])


@attention.register_fake
def _(q, k, v):
    return empty_for(q)


def _waves(q: torch.Tensor) -> float:
    return q.shape[0] * q.shape[1] * triton.cdiv(q.shape[2], QUERIES) / multiprocessors(q.device)


def takes_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> bool:
    short = has_heads(q) and max(q.shape[2], k.shape[2]) <= MOST_TOKENS
    return short and _waves(q) <= MOST_WAVES and all(map(_has_tiles, (q, k, v)))


def _has_tiles(t: torch.Tensor) -> bool:
    """Whether rows begin where the copy engine can."""
    return t.stride(-1) == 1 and all(stride % 8 == 0 for stride in t.stride()[:-1])
