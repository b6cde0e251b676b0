"""Layers that read only a call's own inputs run beside it, on a second stream: the text's keys and values.

SDXL computes 140 products of the prompt in each call. Each is too small to fill a card, but none waits for anything, so
in a captured call they cost hardly any time beside the large products of the image. Layers whose weights are packed are
one product.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn import functional as F

from sdxl_optim.backends.api import Tensors
from sdxl_optim.backends.rewrites.layer_rewrite import bound
from sdxl_optim.backends.rewrites.weight_layout import packed_weight
from sdxl_optim.unet.patching import forwards_replaced


class SideStream:
    """The layers that were found in a UNet. stream: where they run; None, as on a CPU: in order, as the call begins."""

    def __init__(self, stream: torch.cuda.Stream | None = None):
        self.stream = stream
        self._groups: list[tuple[int, list[nn.Linear]]] = []  # (which input they read, layers of one product)
        self._found: dict[nn.Module, int] = {}  # the number of the layer's group, in the order of the calls
        self._results: dict[nn.Module, torch.Tensor] = {}
        self._events: list[torch.cuda.Event] = []  # the end of each group's product
        self._awaited = 0  # groups

    def __contains__(self, layer: nn.Module) -> bool:
        return layer in self._found

    def __len__(self) -> int:
        return len(self._found)

    @property
    def products(self) -> list[list[nn.Linear]]:
        """The found layers, those of one product together."""
        return [layers for _, layers in self._groups]

    @property
    def pending(self) -> int:
        """Results that are kept for layers. There are none outside of a call."""
        return len(self._results)

    @contextmanager
    def discover(self, unet: nn.Module, inputs: Tensors) -> Iterator[None]:
        """Context manager around one call: finds the layers of `unet` that are called once, with a sequence among
        `inputs` as it is."""
        seen: dict[nn.Linear, int | None] = {}

        def record(layer: nn.Linear, original: Callable, x):
            place = next((i for i, given in enumerate(inputs) if given.dim() == 3 and _is_same(x, given)), None)
            seen[layer] = None if layer in seen else place
            return original(x)

        linear = [module for module in unet.modules() if isinstance(module, nn.Linear)]
        with forwards_replaced((layer, bound(record, layer)) for layer in linear):
            yield
        self._groups = []
        for layer, place in seen.items():
            if place is not None:
                self._add(layer, place)
        self._found = {layer: k for k, (_, layers) in enumerate(self._groups) for layer in layers}

    def _add(self, layer: nn.Linear, place: int) -> None:
        last_place, last = self._groups[-1] if self._groups else (None, [])
        if place == last_place and packed_weight([*last, layer]) is not None:
            last.append(layer)
        else:
            self._groups.append((place, [layer]))

    def width(self, layer: nn.Module) -> int:
        """Columns of the product that the layer's result is a part of."""
        _, layers = self._groups[self._found[layer]]
        return sum(layer.out_features for layer in layers)

    @contextmanager
    def prefetch(self, inputs: Tensors) -> Iterator[None]:
        """Context manager inside one call: computes the found layers' results for `inputs`, and serves them where the
        layers are called. The call's own autocast has to be on by then, as it decides what the layers do."""

        def serve(layer: nn.Module, original: Callable, x):
            place, _ = self._groups[self._found[layer]]
            return self.result(layer) if _is_same(x, inputs[place]) else original(x)

        self._start(inputs)
        try:
            with forwards_replaced((layer, bound(serve, layer)) for layer in self._found):
                yield
        finally:
            self._end()

    def result(self, layer: nn.Module) -> torch.Tensor:
        """A found layer's result, inside `prefetch`."""
        self._wait_for(self._found[layer])
        return self._results[layer]

    def warm_up(self, inputs: Tensors) -> None:
        """Compute the results once: what a stream's first product initialises can't be initialised in a capture."""
        if self.stream is not None:
            self._start(inputs)
            self._end()

    def _start(self, inputs: Tensors) -> None:
        self._events, self._awaited = [], 0
        if self.stream is None or not self._found:
            for group in self._groups:
                self._compute(*group, inputs)
            return
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            for group in self._groups:
                self._compute(*group, inputs)
                self._events.append(self.stream.record_event())

    def _compute(self, place: int, layers: list[nn.Linear], inputs: Tensors) -> None:
        weight = packed_weight(layers) if len(layers) > 1 else None
        if weight is None:
            self._results |= {layer: layer(inputs[place]) for layer in layers}
        else:
            parts = F.linear(inputs[place], weight).chunk(len(layers), -1)
            self._results |= zip(layers, parts, strict=True)

    def _wait_for(self, group: int) -> None:
        if self._awaited <= group < len(self._events):
            torch.cuda.current_stream().wait_event(self._events[group])
            self._awaited = group + 1

    def _end(self) -> None:
        """Join the streams, as a capture has to end with one."""
        self._wait_for(len(self._events) - 1)
        self._results.clear()


def _is_same(x: torch.Tensor, given: torch.Tensor) -> bool:
    return x is given or (
        x.data_ptr() == given.data_ptr()
        and x.shape == given.shape
        and x.stride() == given.stride()
        and x.dtype == given.dtype
    )
