"""A VAE's encoder and decoder in another precision, in tiles, and never with a NaN in their result."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import nn

from sdxl_optim.ops.tiling import FACTOR, count_tiles, tiled_decode, tiled_encode
from sdxl_optim.patches.attribute import replaced

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
AMPERE = (8, 0)  # the first compute capability with bf16 units


def computes_bf16(device: torch.device) -> bool:
    """Whether the card has it in hardware; torch's own question also counts cards that only imitate it."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= AMPERE


def pick_precision(wanted: str, device: torch.device, has_fix: bool = False) -> tuple[torch.dtype | None, str | None]:
    """(dtype or None for the host's own, the reason why it is not the wanted one or None).

    auto: bf16, which has fp32's range, where the card has it; fp16 with a VAE made for it (has_fix); else fp32.
    """
    if wanted == "host":
        return None, None
    if wanted == "auto":
        name = "bf16" if computes_bf16(device) else "fp16" if has_fix and device.type == "cuda" else "fp32"
        return DTYPES[name], None
    if wanted == "fp16" and device.type == "cpu":
        return torch.float32, "the CPU does not compute in fp16; fp32 is used"
    return DTYPES[wanted], None


@dataclass
class VaeReport:
    """What the VAE did while attached. precision: of its last decode or encode. tiles: of all of them."""

    precision: str = ""
    tiles: int = 0
    retries: list[str] = field(default_factory=list)  # one sentence for each precision that gave a NaN

    def facts(self) -> list[str]:
        return [f"VAE in {self.precision}"] * bool(self.precision) + [f"{self.tiles} tiles"] * bool(self.tiles)


@contextmanager
def vae_attached(
    encoder: nn.Module, decoder: nn.Module, dtype: torch.dtype | None, tile: int | None, report: VaeReport
) -> Iterator[None]:
    """While entered, both compute in `dtype` (None: their own) and in tiles of `tile` latents (None: at once).

    encoder: [B, 3, 8h, 8w] → [B, C, h, w], decoder: [B, 4, h, w] → [B, 3, 8h, 8w]; quant convolutions may lie outside,
    as they act on each latent by itself. The decoder's result keeps the precision it was computed in. A result with a
    NaN or infinity is computed again in a safer precision; if fp32 gives one, too, it is returned.
    """
    with ExitStack() as stack:
        for module, run, per_latent in ((encoder, tiled_encode, FACTOR), (decoder, tiled_decode, 1)):
            make = _forward(module, dtype, tile, run, per_latent, report)
            stack.enter_context(replaced(module, "forward", make))
        yield


def _forward(module: nn.Module, wanted, tile, run, per_latent: int, report: VaeReport) -> Callable:
    keep_dtype = per_latent != 1  # what follows the encoder expects the VAE's own precision

    def make(original):
        def compute(x: torch.Tensor, dtype: torch.dtype, more: dict) -> torch.Tensor:
            def one(part):
                return original(part.to(dtype), **more)

            with computing_in(module, dtype), _no_autocast(x.device.type):
                sides = [n // per_latent for n in x.shape[-2:]]
                if tile is None or max(sides) <= tile:
                    return one(x)
                report.tiles += count_tiles(*sides, tile)
                return run(one, x, tile)

        def forward(x, **more):
            own = next(module.parameters()).dtype
            dtype = wanted or own
            for safer in (*_safer(dtype, x.device), None):
                out = compute(x, dtype, more)
                report.precision = NAMES.get(dtype, str(dtype))
                if safer is None or bool(torch.isfinite(out).all()):
                    break
                text = f"{NAMES.get(dtype, dtype)} gave a NaN; computed again in {NAMES[safer]}"
                if text not in report.retries:
                    report.retries.append(text)
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
