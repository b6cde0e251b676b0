"""Decode and encode in tiles with blended seams, so that memory is bounded by the tile and not by the picture.

Tiles, overlap and blending are those of diffusers' `AutoencoderKL.tiled_decode` and `tiled_encode`
(https://github.com/huggingface/diffusers), but for a tile that lies wholly within the one before it, which is left out.
Every tile has group norms of its own, so tone can differ from the untiled picture; larger tiles differ less. Norms of
the whole picture are in `norms.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

OVERLAP = 0.25  # of a tile, shared with its neighbour
FACTOR = 8  # pixels to a latent, along one side


def tile_starts(length: int, tile: int) -> list[int]:
    """Where tiles of `tile` begin along a side of `length`."""
    stride = int(tile * (1 - OVERLAP))
    starts = [0]
    while starts[-1] + tile < length:
        starts.append(starts[-1] + stride)
    return starts


def count_tiles(height: int, width: int, tile: int) -> int:
    return len(tile_starts(height, tile)) * len(tile_starts(width, tile))


def tiled_decode(decode: Callable, z: torch.Tensor, tile: int) -> torch.Tensor:
    """decode: [B, 4, h, w] latents → [B, C, 8h, 8w]. z: [B, 4, H, W]. tile: side of a tile in latents."""
    return _tiled(decode, z, tile, lambda n: n * FACTOR)


def tiled_encode(encode: Callable, x: torch.Tensor, tile: int) -> torch.Tensor:
    """encode: [B, 3, 8h, 8w] pixels → [B, C, h, w]. x: [B, 3, H, W]. tile: side of a tile in latents."""
    return _tiled(encode, x, tile * FACTOR, lambda n: n // FACTOR)


def _tiled(run: Callable, x: torch.Tensor, tile: int, scaled: Callable[[int], int]) -> torch.Tensor:
    """scaled: a length of the input → the same length in the output."""
    height, width = x.shape[-2:]
    extent = int(scaled(tile) * OVERLAP)
    limit = scaled(tile) - extent
    canvas: Any = None  # a tensor, from the first tile on
    above: list[torch.Tensor] = []  # what the tiles of the row before reach into this one
    for top in tile_starts(height, tile):
        left, row = None, []
        for k, start in enumerate(tile_starts(width, tile)):
            # Always a tensor of its own: it is blended in place.
            out = run(x[..., top : top + tile, start : start + tile].contiguous())
            if canvas is None:
                canvas = out.new_empty(*out.shape[:-2], scaled(height), scaled(width))
            if above:
                _blend(above[k], out, extent, -2)
            if left is not None:
                _blend(left, out, extent, -1)
            row.append(out[..., limit:, :].clone())
            left = out[..., limit:].clone()
            y, x0 = scaled(top), scaled(start)
            place = canvas[..., y : y + out.shape[-2], x0 : x0 + out.shape[-1]]
            place.copy_(out)
        above = row
    return canvas


def _blend(before: torch.Tensor, after: torch.Tensor, extent: int, dim: int) -> None:
    """Fade the first `extent` lines of `after` in, over those that `before` has in the same place."""
    n = min(before.shape[dim], after.shape[dim], extent)
    if n == 0:
        return
    shape = [1] * after.dim()
    shape[dim] = n
    weight = (torch.arange(n, device=after.device, dtype=torch.float32) / n).to(after.dtype).view(shape)
    old, new = before.narrow(dim, 0, n), after.narrow(dim, 0, n)
    new.copy_(old * (1 - weight) + new * weight)
