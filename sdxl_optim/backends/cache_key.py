"""What decides whether a prepared call can serve another one."""

from __future__ import annotations

import weakref
from collections.abc import Hashable
from typing import NamedTuple

import torch
from torch import nn

from sdxl_optim.backends.call.arguments import Signature
from sdxl_optim.sampling.call import Kind
from sdxl_optim.techniques.accumulation.patch import has_fp16_accumulation

SAMPLES = 16  # tensors whose addresses are compared before each call, out of about 1,700


class CallKey(NamedTuple):
    """unet: its id. host: the host's fingerprint. weights_version: for a backend that bakes weights in, else None."""

    unet: int
    kind: Kind
    signature: Signature
    host: Hashable
    weights_version: int | None
    switches: tuple


class Weights:
    """The addresses and types of a UNet's weights. A captured call reads weights where they were: it sees a change in
    place, but not a move."""

    def __init__(self, unet: nn.Module, fingerprint: Hashable):
        tensors = [*unet.parameters(), *unet.buffers()]
        sample = tensors[:: max(1, len(tensors) // SAMPLES)]
        self._unet, self._fingerprint = weakref.ref(unet), fingerprint
        self._sample = [weakref.ref(tensor) for tensor in sample]
        self._addresses, self._sampled = _addresses(tensors), _addresses(sample)
        self.dtypes = frozenset(tensor.dtype for tensor in tensors if tensor.is_floating_point())

    def moved(self, fingerprint: Hashable) -> bool:
        """All addresses are compared if the host's fingerprint changed (another LoRA), a sample of them otherwise: code
        that moves a model moves all of it."""
        if fingerprint == self._fingerprint and self._sampled == _addresses(ref() for ref in self._sample):
            return False
        self._fingerprint = fingerprint
        unet = self._unet()
        return unet is None or _addresses([*unet.parameters(), *unet.buffers()]) != self._addresses

    def reread(self) -> Weights:
        """The same UNet's weights at their present addresses."""
        unet = self._unet()
        return self if unet is None else Weights(unet, self._fingerprint)

    def version(self) -> int:
        """A number that differs after each change in place."""
        unet = self._unet()
        return 0 if unet is None else sum(int(tensor._version) for tensor in unet.parameters())


def _addresses(tensors) -> tuple[int, ...]:
    return tuple(0 if tensor is None else tensor.data_ptr() for tensor in tensors)


def torch_switches() -> tuple:
    """torch's process-wide switches that decide which operations or kernels a call runs."""
    cuda, cudnn = torch.backends.cuda, torch.backends.cudnn
    return (
        torch.is_autocast_enabled(),
        torch.is_inference_mode_enabled(),
        cuda.matmul.allow_tf32,
        has_fp16_accumulation() and cuda.matmul.allow_fp16_accumulation,
        cudnn.allow_tf32,
        cudnn.benchmark,
        cudnn.deterministic,
        cuda.flash_sdp_enabled(),
        cuda.mem_efficient_sdp_enabled(),
        cuda.math_sdp_enabled(),
    )
