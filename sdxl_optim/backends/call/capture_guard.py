"""Checks a call's operations before it is captured, so that an operation that no graph can contain is named."""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sdxl_optim.backends.api import CannotPrepare
from sdxl_optim.wording import message

# Operations whose result's size, or value in Python, depends on tensors' contents: the host waits for the device.
WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "equal"}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}


class CaptureGuard(TorchDispatchMode):
    """Entered around a call twice: first it records the call's constants, then, while the call is captured, it
    replays them.

    A constant is a tensor that the call computes on the CPU and copies to the device. It depends on none of the call's
    inputs (reading one of those is refused), so it is the same in each call. A capture can't contain the copy, so the
    recorded tensor stands in for it. SDXL's timestep embedding makes its frequencies that way.
    """

    def __init__(self):
        super().__init__()
        self.constants: list[torch.Tensor] = []
        self._replayed: int | None = None  # how many constants; None while they are recorded

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """For torch: to be hidden from its compiler would import that, which takes seconds."""
        return False

    def replay_constants(self) -> CaptureGuard:
        self._replayed = 0
        return self

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func.__name__.split(".")[0]
        if name in ("_to_copy", "copy_"):
            return self._copy(func, name, args, kwargs)
        if name in WAITS and _on_device(args[0]):
            raise CannotPrepare(message("the UNet's call waits for the device ({operation})", operation=name))
        if name in INDEXING and any(_is_mask(i) for i in args[1] if i is not None):
            raise CannotPrepare(message("the UNet's call waits for the device ({operation} by a mask)", operation=name))
        return func(*args, **kwargs)

    def _copy(self, func, name: str, args: tuple, kwargs: dict):
        source = args[0] if name == "_to_copy" else args[1]
        to = torch.device(kwargs.get("device") or source.device) if name == "_to_copy" else args[0].device
        if source.device.type == to.type:
            return func(*args, **kwargs)
        if source.device.type != "cpu" or name == "copy_":
            raise CannotPrepare(
                message("the UNet's call copies from {source} to {target}", source=source.device.type, target=to.type)
            )
        if self._replayed is None:
            self.constants.append(func(*args, **kwargs))
            return self.constants[-1]
        if self._replayed == len(self.constants):
            raise CannotPrepare("the UNet's call does not do the same each time")
        self._replayed += 1
        return self.constants[self._replayed - 1]


def _on_device(value) -> bool:
    return isinstance(value, torch.Tensor) and value.device.type != "cpu"


def _is_mask(index) -> bool:
    return _on_device(index) and index.dtype in (torch.bool, torch.uint8)
