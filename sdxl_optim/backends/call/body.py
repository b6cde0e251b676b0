"""A UNet call as a function of tensors alone, the form in which backends take it.

Whatever Python decides in a call (hooks, counters, the schedule) was decided before it. The tensor that DeepCache
reuses is an input, and the one that it keeps is an output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from sdxl_optim.backends.api import CannotPrepare, Tensors
from sdxl_optim.backends.call.arguments import Arguments
from sdxl_optim.sampling.call import Exchange, Kind
from sdxl_optim.wording import message

Around = Callable[[Tensors], AbstractContextManager]
Casting = Callable[[nn.Module], AbstractContextManager]


@contextmanager
def without_cast_cache(unet: nn.Module) -> Iterator[None]:
    """Context manager: autocast keeps no cast weights. It would free them when the host leaves it, and a captured call
    would still read them."""
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)


class UNetBody:
    """`forward` of one kind. inputs: the call's tensors, and behind them what a cached call reuses.

    Returns the UNet's output tensors, and behind them what a technique keeps of a full call. exchange: of deep
    features, or None. casting: of a UNet, the context manager in which its `forward` runs. structure: of the UNet's
    answer, once there was one.
    """

    def __init__(
        self,
        unet: nn.Module,
        forward: Callable,
        arguments: Arguments,
        kind: Kind,
        exchange: Exchange | None,
        casting: Casting = without_cast_cache,
    ):
        self.unet, self.kind = unet, kind
        self._forward, self._arguments, self._exchange, self._casting = forward, arguments, exchange, casting
        self.structure: TreeSpec | None = None

    def as_stock(self) -> UNetBody:
        """The same call as the host would make it."""
        return UNetBody(self.unet, self._forward, self._arguments, self.kind, self._exchange, nullcontext)

    def __call__(self, inputs: Tensors, around: Around | None = None) -> list[torch.Tensor]:
        return self.run(self._forward, inputs, around)

    def run(self, forward: Callable, inputs: Tensors, around: Around | None = None) -> list[torch.Tensor]:
        """The call by another `forward`. around: of the inputs, what is entered around the UNet's own Python."""
        inputs = list(inputs)
        reused = inputs.pop() if self.kind.cached else None
        args, kwargs = self._arguments.put_together(inputs)
        isolated = self._exchange.isolated(reused) if self._exchange is not None else nullcontext([])
        with self._casting(self.unet), isolated as kept, around(inputs) if around else nullcontext():
            out = forward(*args, **kwargs)
        leaves, self.structure = tree_flatten(out)
        if not all(isinstance(leaf, torch.Tensor) for leaf in leaves):
            raise CannotPrepare(
                message("the UNet answers with a {kind} that holds more than tensors", kind=type(out).__name__)
            )
        if len(kept) > 1:
            raise CannotPrepare("something ran the UNet's blocks twice in one call")
        return [*leaves, *kept]


def split(outputs: list[torch.Tensor], structure) -> tuple[object, torch.Tensor | None]:
    """The UNet's answer in its own form, as copies, and what DeepCache keeps, uncopied."""
    n = structure.num_leaves
    kept = outputs[n] if len(outputs) > n else None
    return tree_unflatten([tensor.clone() for tensor in outputs[:n]], structure), kept
