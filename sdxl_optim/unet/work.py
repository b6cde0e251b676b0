"""How much of a UNet call's arithmetic a cached call still does: an estimate from the shapes of its layers, without
running it."""

from __future__ import annotations

from torch import nn

from sdxl_optim.unet.layout import Layout

CONTEXT = 77  # tokens of a short prompt


def cached_share(layout: Layout, branch: int, height: int, width: int) -> float:
    """Between 0 and 1: what DeepCache at `branch` leaves of a full call's multiplications.

    height, width: of the latents. The norms and activations, which take time but few multiplications, are not counted.
    """
    total = kept = 0.0
    first_kept = 2 * layout.depth - branch  # the blocks behind the last one that keeps still
    area = float(height * width)
    for i, block in enumerate(layout.blocks):
        names = {type(layer).__name__ for layer in block.children()}
        if i < layout.depth and "Downsample" in names:
            area /= 4
        work = _block(block, area)
        total += work
        if i <= branch or i >= first_kept:
            kept += work
        if i > layout.depth and "Upsample" in names:
            area *= 4
    return kept / total if total else 1.0


def _block(block: nn.Module, area: float) -> float:
    work = 0.0
    for name, layer in block.named_modules():
        if isinstance(layer, nn.Conv2d):
            upsampled = 4 if ".conv" in f".{name}" and _inside_upsample(block, name) else 1
            work += layer.weight.numel() * area * upsampled
        elif isinstance(layer, nn.Linear):
            work += layer.weight.numel() * _tokens_of(name, area)
            if name.endswith("to_q"):  # the products with keys and values
                work += 2 * area * layer.out_features * (CONTEXT if "attn2" in name else area)
    return work


def _tokens_of(name: str, area: float) -> float:
    if "emb_layers" in name:
        return 1
    return CONTEXT if "attn2.to_k" in name or "attn2.to_v" in name else area


def _inside_upsample(block: nn.Module, name: str) -> bool:
    layer = dict(block.named_children()).get(name.split(".")[0])
    return type(layer).__name__ == "Upsample"
