"""A VAE's encoder and decoder in another precision, in tiles, and never with a NaN in their result."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from threading import RLock

import torch
from torch import nn

from sdxl_optim.techniques.vae.counts import VaeReport
from sdxl_optim.techniques.vae.norms import norms_with, reduced, statistics_of
from sdxl_optim.techniques.vae.tiling import FACTOR, count_tiles, tiled_decode, tiled_encode
from sdxl_optim.unet.patching import replaced
from sdxl_optim.wording import message

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
SMALLEST = 32  # latents along a tile
WORK = 2_430  # bytes beside weights that SDXL's decoder takes for a pixel in half precision (measured at 1024×1024)
AMPERE = (8, 0)  # the first compute capability with bf16 units


def computes_bf16(device: torch.device) -> bool:
    """Whether the card has it in hardware; torch's own question also counts cards that only imitate it."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= AMPERE


def auto_precision(device: torch.device, has_fix: bool = False) -> str:
    """The setting auto: bf16, which has fp32's range, where the card has it; fp16 with a VAE made for it (has_fix);
    else fp32."""
    return "bf16" if computes_bf16(device) else "fp16" if has_fix and device.type == "cuda" else "fp32"


def work_of(pixels: int, dtype: torch.dtype) -> int:
    """Bytes beside weights for decoding so many at once."""
    return pixels * WORK * torch.finfo(dtype).bits // 16


def largest_tile(room: int, dtype: torch.dtype) -> int:
    """Side in latents of the largest tile that decodes in `room` bytes, in steps of 8."""
    side = math.isqrt(max(room, 0) // work_of(FACTOR**2, dtype))
    return max(side // 8 * 8, SMALLEST)


@contextmanager
def vae_attached(
    encoder: nn.Module,
    decoder: nn.Module,
    dtype: torch.dtype | None,
    tile: int | None,
    report: VaeReport,
    free_memory: Callable[[], bool] = lambda: False,
    norms: str = "tile",
) -> Iterator[None]:
    """While entered, both compute in `dtype` (None: their own) and in tiles of tile × tile latents (None: at once).
    What has no more latents than a tile is computed at once, whatever its shape.

    encoder: [B, 3, 8h, 8w] → [B, C, h, w], decoder: [B, 4, h, w] → [B, 3, 8h, 8w]; quant convolutions may lie outside,
    as they act on each latent by itself. The decoder's result keeps the precision it was computed in. A result with a
    NaN or infinity is computed again in a safer precision; if fp32 gives one, too, it is returned. Where memory runs
    out, `free_memory` is asked for some (it returns whether there is more), then tiles are halved, and the report says
    so.

    norms: "tile" gives each tile group norms of its own, as diffusers does; "picture" takes their statistics from the
    whole picture, scaled down to the size of a tile and computed once more.

    A host may decode previews in another thread: they wait for each other, as each changes the weights' precision.
    """
    alone = RLock()
    with ExitStack() as stack:
        for module, run, per_latent in ((encoder, tiled_encode, FACTOR), (decoder, tiled_decode, 1)):
            make = _forward(module, dtype, tile, run, per_latent, norms == "picture", report, free_memory, alone)
            stack.enter_context(replaced(module, "forward", make))
        try:
            yield
        finally:
            with alone:
                stack.close()


def _forward(
    module: nn.Module,
    wanted,
    size,
    run,
    per_latent: int,
    whole_norms: bool,
    report: VaeReport,
    free_memory,
    alone: RLock,
) -> Callable:
    keep_dtype = per_latent != 1  # what follows the encoder expects the VAE's own precision

    def make(original):
        def compute(x: torch.Tensor, dtype: torch.dtype, tile: int | None, more: dict) -> torch.Tensor:
            def one(part):
                return original(part.to(dtype), **more)

            with computing_in(module, dtype), _no_autocast(x.device.type):
                height, width = (n // per_latent for n in x.shape[-2:])
                if tile is None or height * width <= tile**2:
                    return one(x)
                found = statistics_of(module, lambda: one(reduced(x, tile, per_latent))) if whole_norms else {}
                with norms_with(found):
                    out = run(one, x, tile)
                report.norms |= bool(found)
                report.tiles += count_tiles(height, width, tile)
                return out

        def fitting(x: torch.Tensor, dtype: torch.dtype, more: dict) -> torch.Tensor:
            tile, relieved = size and min(size, max(x.shape[-2:]) // per_latent), False
            while True:
                smallest = tile is None or tile <= SMALLEST
                try:
                    return compute(x, dtype, tile, more)
                except torch.cuda.OutOfMemoryError:
                    if relieved and smallest:
                        raise
                if not relieved:
                    relieved = True
                    if found := free_memory():
                        report.say("memory ran out; computed again with the rest of the model in main memory")
                    if found or smallest:
                        continue
                tile = max(tile // 2, SMALLEST)
                report.say(message("memory ran out; computed again in tiles of {size}", size=tile * FACTOR))

        def forward(x, **more):
            with alone:
                return safely(x, more)

        def safely(x: torch.Tensor, more: dict) -> torch.Tensor:
            own = next(module.parameters()).dtype
            dtype = wanted or own
            for safer in (*_safer(dtype, x.device), None):
                out = fitting(x, dtype, more)
                report.precision = NAMES.get(dtype, str(dtype))
                if safer is None or bool(torch.isfinite(out).all()):
                    break
                was, now = NAMES.get(dtype, str(dtype)), NAMES[safer]
                report.say(message("{was} gave a NaN; computed again in {now}", was=was, now=now))
                dtype = safer
            return out.to(own) if keep_dtype else out

        return forward

    return make


def _no_autocast(kind: str):
    return torch.autocast(kind, enabled=False) if kind in ("cuda", "cpu") else nullcontext()


def _safer(dtype: torch.dtype, device: torch.device) -> tuple[torch.dtype, ...]:
    """Precisions to try after `dtype`, in that order."""
    if dtype == torch.float16 and computes_bf16(device):
        return (torch.bfloat16, torch.float32)
    return () if dtype == torch.float32 else (torch.float32,)


@contextmanager
def computing_in(module: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """While entered, the module's floating parameters and buffers are of `dtype`; then the very same ones as before."""
    before: list[tuple[torch.Tensor, torch.Tensor]] = []
    try:
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.is_floating_point() and tensor.dtype != dtype:
                before.append((tensor, tensor.data))
                tensor.data = tensor.data.to(dtype)
        yield
    finally:
        for tensor, data in before:
            tensor.data = data
