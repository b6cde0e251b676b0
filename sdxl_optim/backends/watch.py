"""Look at a call's operations before it is captured: what can't be in a graph is found while it can still be named."""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sdxl_optim.errors import Unsupported

# Operations whose result's size, or value in Python, depends on tensors' contents: the host waits for the device.
WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "equal"}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}


class Watch(TorchDispatchMode):
    """Entered around a call twice: first it looks, then, while the call is captured, it hands out what it found.

    What a call computes on the CPU and brings to the device depends on none of its inputs (reading one of those is
    refused), so it is the same each time; and as a capture can't contain the transfer, the first result is kept. SDXL's
    timestep embedding makes its frequencies that way.
    """

    def __init__(self):
        super().__init__()
        self.constants: list[torch.Tensor] = []
        self._handed_out: int | None = None  # None while it looks

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """For torch: to be hidden from its compiler would import that, which takes seconds."""
        return False

    def hand_out(self) -> Watch:
        self._handed_out = 0
        return self

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func.__name__.split(".")[0]
        if name in ("_to_copy", "copy_"):
            return self._copy(func, name, args, kwargs)
        if name in WAITS and _on_device(args[0]):
            raise Unsupported("backend", f"the UNet's call waits for the device ({name})")
        if name in INDEXING and any(_is_mask(i) for i in args[1] if i is not None):
            raise Unsupported("backend", f"the UNet's call waits for the device ({name} by a mask)")
        return func(*args, **kwargs)

    def _copy(self, func, name: str, args: tuple, kwargs: dict):
        source = args[0] if name == "_to_copy" else args[1]
        to = torch.device(kwargs.get("device") or source.device) if name == "_to_copy" else args[0].device
        if source.device.type == to.type:
            return func(*args, **kwargs)
        if source.device.type != "cpu" or name == "copy_":
            raise Unsupported("backend", f"the UNet's call copies from {source.device.type} to {to.type}")
        if self._handed_out is None:
            self.constants.append(func(*args, **kwargs))
            return self.constants[-1]
        if self._handed_out == len(self.constants):
            raise Unsupported("backend", "the UNet's call does not do the same each time")
        self._handed_out += 1
        return self.constants[self._handed_out - 1]


def _on_device(value) -> bool:
    return isinstance(value, torch.Tensor) and value.device.type != "cpu"


def _is_mask(index) -> bool:
    return _on_device(index) and index.dtype in (torch.bool, torch.uint8)
