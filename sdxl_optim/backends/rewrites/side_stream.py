"""Layers that read nothing but a call's own inputs run beside it, on a second stream: the text's keys and values.

SDXL makes 140 products of the prompt in each call. Each is too small to fill a card, but they wait for nothing, so that
in a captured call they cost hardly any time beside the image's large ones. Those whose weights lie side by side are
one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn import functional as F

from sdxl_optim.backends.api import Tensors
from sdxl_optim.backends.rewrites.weight_layout import packed_weight
from sdxl_optim.unet.patching import forwards_replaced


class SideStream:
    """stream: where the layers run beside the call; None, as on a CPU: in order, at the call's beginning."""

    def __init__(self, stream: torch.cuda.Stream | None = None):
        self._stream = stream
        self._groups: list[tuple[int, list[nn.Linear]]] = []  # (the input that they read, layers with one product)
        self._found: dict[nn.Module, int] = {}  # the number of its group, in the order of the calls
        self._results: dict[nn.Module, torch.Tensor] = {}
        self._events: list[torch.cuda.Event] = []  # of each group's end
        self._awaited = 0  # groups

    def __contains__(self, layer: nn.Module) -> bool:
        return layer in self._found

    def __len__(self) -> int:
        return len(self._found)

    @contextmanager
    def discover(self, unet: nn.Module, inputs: Tensors) -> Iterator[None]:
        """While entered, the layers of `unet` are found that are called once, with a sequence of `inputs` as it is."""
        seen: dict[nn.Module, int | None] = {}

        def make(layer: nn.Module):
            def look(original):
                def forward(x):
                    place = next((i for i, given in enumerate(inputs) if given.dim() == 3 and _is_same(x, given)), None)
                    seen[layer] = None if layer in seen else place
                    return original(x)

                return forward

            return look

        linear = [module for module in unet.modules() if isinstance(module, nn.Linear)]
        with forwards_replaced((layer, make(layer)) for layer in linear):
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
        """Of the product that the layer's result is a part of."""
        _, layers = self._groups[self._found[layer]]
        return sum(layer.out_features for layer in layers)

    @contextmanager
    def prefetch(self, inputs: Tensors) -> Iterator[None]:
        """While entered, the found layers' results for `inputs` are made, and handed out where the layers are called.

        To be entered inside the call, as its autocast decides what the layers do.
        """

        def make(layer: nn.Module):
            given = inputs[self._groups[self._found[layer]][0]]

            def hand_out(original):
                return lambda x: self.result(layer) if _is_same(x, given) else original(x)

            return hand_out

        self._start(inputs)
        try:
            with forwards_replaced((layer, make(layer)) for layer in self._found):
                yield
        finally:
            self._end()

    def result(self, layer: nn.Module) -> torch.Tensor:
        """Of a found layer, while `prefetch` is entered."""
        self._wait_for(self._found[layer])
        return self._results[layer]

    def warm_up(self, inputs: Tensors) -> None:
        """What a stream's first product sets up can't be done in a capture."""
        if self._stream is not None:
            self._start(inputs)
            self._end()

    def _start(self, inputs: Tensors) -> None:
        self._events, self._awaited = [], 0
        if self._stream is None or not self._found:
            for group in self._groups:
                self._make(*group, inputs)
            return
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            for group in self._groups:
                self._make(*group, inputs)
                self._events.append(self._stream.record_event())

    def _make(self, place: int, layers: list[nn.Linear], inputs: Tensors) -> None:
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
        """All streams are back together: a capture has to end so."""
        self._wait_for(len(self._events) - 1)
        self._results.clear()


def _is_same(x: torch.Tensor, given: torch.Tensor) -> bool:
    return x is given or (
        x.data_ptr() == given.data_ptr()
        and x.shape == given.shape
        and x.stride() == given.stride()
        and x.dtype == given.dtype
    )
