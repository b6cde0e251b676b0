"""A UNet call as a function of tensors alone, the form in which backends take it.

Everything that Python decides in a call (hooks, counters, the schedule) was decided before it. What DeepCache reuses
comes in as a tensor, what it keeps goes out as one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from sdxl_optim.backends.api import Kind, Tensors
from sdxl_optim.backends.rewrites.layers import capture_friendly_layers
from sdxl_optim.errors import Unsupported
from sdxl_optim.unet.patching import forwards_replaced

HALF = (torch.float16, torch.bfloat16)
Around = Callable[[Tensors], AbstractContextManager]


@dataclass(frozen=True)
class Signature:
    """A call's arguments without the tensors' contents. Equal signatures can share one prepared call."""

    structure: str
    constants: tuple
    tensors: tuple


class Arguments:
    """The arguments of one UNet call, taken apart into tensors and the rest."""

    def __init__(self, args: tuple, kwargs: dict):
        leaves, self._structure = tree_flatten((args, kwargs))
        self._rest = [None if isinstance(leaf, torch.Tensor) else (leaf,) for leaf in leaves]
        self.tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]

    def signature(self) -> Signature:
        """Raises TypeError where an argument that is no tensor can't be compared."""
        shapes = tuple((tuple(t.shape), t.dtype, t.device) for t in self.tensors)
        signature = Signature(str(self._structure), tuple(self._rest), shapes)
        hash(signature)
        return signature

    def put_together(self, tensors: Tensors) -> tuple[tuple, dict]:
        """(args, kwargs) with `tensors` in the places of this call's."""
        rest = iter(tensors)
        leaves = [next(rest) if kept is None else kept[0] for kept in self._rest]
        return tree_unflatten(leaves, self._structure)


class UNetBody:
    """`forward` of one kind. inputs: the call's tensors, and behind them what a cached call reuses.

    Returns the UNet's output tensors, and behind them what DeepCache keeps of a full call. store: DeepCache's, or None.
    bare: without the casts that half-precision weights and inputs need not. stock: as the host would make the call.
    structure: of the UNet's answer, once it was given.
    """

    def __init__(
        self, unet: nn.Module, forward: Callable, arguments: Arguments, kind: Kind, store, bare=False, stock=False
    ):
        self.unet, self.kind, self.bare, self.stock = unet, kind, bare, stock
        self._forward, self._arguments, self._store = forward, arguments, store
        self.structure = None

    def as_stock(self) -> UNetBody:
        """The same call as the host would make it."""
        return UNetBody(self.unet, self._forward, self._arguments, self.kind, self._store, stock=True)

    def __call__(self, inputs: Tensors, around: Around | None = None) -> list[torch.Tensor]:
        return self.run(self._forward, inputs, around)

    def run(self, forward: Callable, inputs: Tensors, around: Around | None = None) -> list[torch.Tensor]:
        """The call by another `forward`. around: of the inputs, what is entered around the UNet's own Python."""
        inputs = list(inputs)
        reused = inputs.pop() if self.kind.cached else None
        args, kwargs = self._arguments.put_together(inputs)
        apart = self._store.apart(reused) if self._store is not None else nullcontext([])
        with self._casting(), apart as kept, around(inputs) if around else nullcontext():
            out = forward(*args, **kwargs)
        leaves, self.structure = tree_flatten(out)
        if not all(isinstance(leaf, torch.Tensor) for leaf in leaves):
            raise Unsupported("backend", f"the UNet answers with a {type(out).__name__} that holds more than tensors")
        if len(kept) > 1:
            raise Unsupported("backend", "something ran the UNet's blocks twice in one call")
        return [*leaves, *kept]

    def _casting(self):
        if self.stock:
            return nullcontext()
        return without_autocast(self.unet) if self.bare else no_cast_weights_kept()


def split(outputs: list[torch.Tensor], structure) -> tuple[object, torch.Tensor | None]:
    """The UNet's answer in its own form, as copies, and what DeepCache keeps, uncopied."""
    n = structure.num_leaves
    return tree_unflatten([tensor.clone() for tensor in outputs[:n]], structure), (outputs[n:] or [None])[0]


def can_run_without_autocast(weights: frozenset[torch.dtype], tensors: Tensors) -> bool:
    """Whether autocast would only cast back and forth: weights and inputs have one and the same half type."""
    dtypes = weights | {tensor.dtype for tensor in tensors if tensor.is_floating_point()}
    return len(dtypes) == 1 and dtypes <= set(HALF)


@contextmanager
def no_cast_weights_kept() -> Iterator[None]:
    """Autocast keeps cast weights until the host leaves it; a captured call would read them afterwards."""
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)


@contextmanager
def without_autocast(unet: nn.Module) -> Iterator[None]:
    """No autocast: group norms compute in fp32 on half tensors by themselves instead of casting around them, and some
    layers run leaner.

    The results are those of autocast to the last rounding: a norm's fp32 output was rounded by the layer that follows.
    """
    weight = next(unet.parameters())
    uncast = torch.autocast(weight.device.type, enabled=False)
    with forwards_replaced(capture_friendly_layers(unet)), _says(unet, weight.dtype), uncast:
        yield


@contextmanager
def _says(unet: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """The ldm layout of SD 1 and 2 brings its input to the type that an attribute names. In the WebUI that is fp32 with
    half-precision weights as well, which only autocast makes up for."""
    said = vars(unet).get("dtype")
    if said is None:
        yield
        return
    unet.dtype = dtype
    try:
        yield
    finally:
        unet.dtype = said
