"""One kind of layer that runs as other operations, as a value: lists of these are what a prepared call changes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from torch import nn

Make = Callable[[Callable], Callable]  # from a layer's forward to the one in its place
Replacement = tuple[nn.Module, Make]


@dataclass(frozen=True)
class LayerRewrite:
    """matches: whether a module is of this kind. make: what is then replaced, the module itself or layers inside it."""

    matches: Callable[[nn.Module], object]
    make: Callable[[nn.Module], Iterable[Replacement]]


def itself(forward: Callable) -> Callable[[nn.Module], Iterable[Replacement]]:
    """A rewrite's `make` that replaces the found layer alone. forward: (layer, its own forward, *the call's arguments)
    → the layer's output."""
    return lambda layer: [(layer, bound(forward, layer))]


def bound(forward: Callable, subject: object) -> Make:
    """`forward(subject, original, *arguments)` for whatever `original` is."""
    return lambda original: partial(forward, subject, original)


def replacements(root: nn.Module, rewrites: Sequence[LayerRewrite]) -> Iterator[Replacement]:
    """What `rewrites` replace inside `root`, for `forwards_replaced`. A module is of the first kind that matches."""
    for module in root.modules():
        rewrite = next((rewrite for rewrite in rewrites if rewrite.matches(module)), None)
        if rewrite is not None:
            yield from rewrite.make(module)
