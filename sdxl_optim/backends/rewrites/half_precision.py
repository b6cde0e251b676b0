"""Half-precision calls without autocast, whose layers run as other operations of torch where these are faster."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from sdxl_optim.backends.api import HALF, Tensors
from sdxl_optim.backends.rewrites.layer_rewrite import replacements
from sdxl_optim.backends.rewrites.layers import CAPTURE_FRIENDLY_LAYERS
from sdxl_optim.unet.patching import forwards_replaced


def can_run_without_autocast(weights: frozenset[torch.dtype], tensors: Tensors) -> bool:
    """Whether weights and inputs have one and the same half type, so that autocast would only cast back and forth."""
    dtypes = weights | {tensor.dtype for tensor in tensors if tensor.is_floating_point()}
    return len(dtypes) == 1 and dtypes <= set(HALF)


@contextmanager
def without_autocast(unet: nn.Module) -> Iterator[None]:
    """Context manager: `unet` runs without autocast, which fp16 weights and inputs do not need, and by the layers of
    rewrites/layers.py. Its group norms sum up in fp32 themselves, with no casts around them.

    The results are those of autocast up to one rounding: the layer behind a norm would have rounded its fp32 output.
    """
    weight = next(unet.parameters())
    rewritten = replacements(unet, CAPTURE_FRIENDLY_LAYERS)
    no_autocast = torch.autocast(weight.device.type, enabled=False)
    with forwards_replaced(rewritten), _stated_dtype(unet, weight.dtype), no_autocast:
        yield


@contextmanager
def _stated_dtype(unet: Any, dtype: torch.dtype) -> Iterator[None]:
    """Context manager: the attribute `dtype` of `unet` is `dtype`, if it has one.

    The ldm layout of SD 1 and 2 converts its input to that type. In the WebUI it is fp32 even if the weights are in
    half precision, which works under autocast alone.
    """
    stated = vars(unet).get("dtype")
    if stated is None:
        yield
        return
    unet.dtype = dtype
    try:
        yield
    finally:
        unet.dtype = stated
