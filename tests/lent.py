"""A UNet that is built once and lent to one test at a time, which has to give it back as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from host_loop import traces
from ldm_unet import UNetModel, tiny_unet


@cache
def _built(name: str, layers: int) -> tuple[UNetModel, torch.Tensor]:
    return tiny_unet(name, layers=layers), torch.get_rng_state()


@contextmanager
def lent_unet(name: str = "sdxl", layers: int = 1) -> Iterator[UNetModel]:
    """A tiny UNet that is built once and lent to one test at a time. Fails if it does not come back as it was: no hook,
    no wrapper, and the same weights."""
    unet, random = _built(name, layers)
    torch.set_rng_state(random)  # random numbers go on as behind a UNet just built
    before = _weights(unet)
    yield unet
    left = traces(unet)
    if left or _weights(unet) != before or unet.training:
        _built.cache_clear()  # the next test has another one
        raise AssertionError(f"the UNet is not what it was: {left or 'its weights are others'}")


def _weights(unet) -> list[tuple]:
    tensors = (*unet.named_parameters(), *unet.named_buffers())
    return [(name, id(t), t._version, t.data_ptr(), t.dtype, t.requires_grad) for name, t in tensors]
