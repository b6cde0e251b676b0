"""What a backend is: something that makes one kind of UNet call into a faster callable.

A kind of call has operations of its own (full or cached, FreeU on or off); which kind comes next is known from the
schedule, before the call, without reading a tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import nn

from sdxl_optim.backends.environment import Environment
from sdxl_optim.wording import Text

if TYPE_CHECKING:
    from sdxl_optim.backends.rewrites.weight_layout import WeightLayout

Tensors = Sequence[torch.Tensor]
Progress = Callable[[str], None]  # takes a few words on what is being prepared, "" at the end
HALF = (torch.float16, torch.bfloat16)


class CannotPrepare(Exception):
    """A call can't be prepared and runs eagerly. reason: for the user, a clause without a full stop."""

    def __init__(self, reason: Text):
        self.reason = reason
        super().__init__(str(reason))


@dataclass(frozen=True)
class HostHooks:
    """What an execution asks its host. The defaults are for a host that keeps no state of its own.

    prepare: brings about what the host otherwise does inside the call, such as merging a LoRA into the weights.
    fingerprint: whatever else of the host's state decides the call's operations; equal ones can share a prepared call.
    is_idle_patch: whether the replaced `forward` of a layer does nothing at present. All three raise CannotPrepare if
    the call has to be the stock one. progress: shows what is being prepared.
    """

    prepare: Callable[[nn.Module], None] = lambda unet: None
    fingerprint: Callable[[nn.Module], Hashable] = lambda unet: None
    is_idle_patch: Callable[[nn.Module], bool] = lambda module: False
    progress: Progress = lambda text: None


NO_HOOKS = HostHooks()


class Body(Protocol):
    """One kind of UNet call as a function of tensors alone: the same operations on every call."""

    def __call__(self, inputs: Tensors) -> list[torch.Tensor]: ...


class Prepared(Protocol):
    """A body made fast. What it returns is valid until it, or another one of its backend, is called again.

    body: of the present call, for backends that leave some of it in Python. nbytes: device memory that it keeps."""

    nbytes: int

    def __call__(self, body: Body, inputs: Tensors) -> list[torch.Tensor]: ...


class Backend(Protocol):
    """A way to run UNet calls. Backends derive from it for the defaults.

    name: as in the settings. captures: Python inside the UNet runs once, when a call is prepared, and not again.
    bakes_weights: a prepared call holds the weights' values, not their addresses. weight_layout: of the UNet's weights
    while anything is prepared, or None.
    """

    name: str
    captures: bool = True
    bakes_weights: bool = False
    weight_layout: WeightLayout | None = None

    def probe(self, environment: Environment) -> Text | None:
        """Why it can't run here, or None."""

    def prepare(self, body, inputs: Tensors, progress: Progress) -> Prepared:
        """Make `body` fast for inputs of these shapes. If it raises anything, the call runs eagerly instead."""

    def release(self) -> None:
        """Free the memory of prepared calls, none of which will be called again."""
