"""A whole call as one module, for compilers that take nothing smaller."""

from __future__ import annotations

import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from sdxl_optim.backends.api import Tensors


def traced(body, inputs: Tensors) -> torch.fx.GraphModule:
    """The operations of a call as a graph over its tensors. The graph holds the UNet's own weights, no copies."""
    trace = make_fx(lambda *tensors: tuple(body(tensors)), tracing_mode="fake", _allow_non_fake_inputs=True)
    return trace(*inputs)


class CallModule(nn.Module):
    """A call with its Python, for compilers that trace by themselves. `unet` is a submodule for its weights."""

    def __init__(self, body):
        super().__init__()
        self.unet = body.unet
        self._body = body

    def forward(self, *tensors):
        return tuple(self._body(tensors))
