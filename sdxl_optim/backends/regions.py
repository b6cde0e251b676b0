"""The UNet's repeated parts, each compiled once for all its copies.

A UNet of SDXL has some ninety residual and transformer blocks, but fourteen kinds of them at a given size. Each kind is
traced by itself, with its weights as inputs, and all blocks of that kind call the same compiled code: that takes a
fraction of the time that the whole UNet takes, weights may change or move at will, and Python around the blocks (hooks,
DeepCache, FreeU) stays what it is.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx

from sdxl_optim.backends.ahead import Ahead
from sdxl_optim.backends.body import Arguments
from sdxl_optim.backends.foreign import is_untouched
from sdxl_optim.patches.attribute import forwards_replaced

NAMES = ("ResBlock", "BasicTransformerBlock", "ResnetBlock2D")  # of the ldm/sgm UNets, and of diffusers'

Compiler = Callable[[torch.fx.GraphModule, list[torch.Tensor]], Callable]


class Regions:
    """Compiled code by kind of block, shared by all UNets. compiler: (graph, example inputs) → callable."""

    def __init__(self, compiler: Compiler):
        self._compiler = compiler
        self._compiled: dict[Hashable, Callable] = {}

    def __len__(self) -> int:
        return len(self._compiled)

    @contextmanager
    def counted(self, regions: list[Region], ahead: Ahead) -> Iterator[set[Hashable]]:
        """While entered, the regions run eagerly, and the kinds that are still to be compiled are collected."""
        missing: set[Hashable] = set()

        def make(region: Region):
            def count(original):
                def forward(*args, **kwargs):
                    key = region.key(Arguments(args, kwargs), ahead)
                    if key not in self._compiled:
                        missing.add(key)
                    return original(*args, **kwargs)

                return forward

            return count

        with forwards_replaced((region.module, make(region)) for region in regions):
            yield missing

    @contextmanager
    def applied(self, regions: list[Region], ahead: Ahead, on_compile: Callable[[], object]) -> Iterator[None]:
        """While entered, the regions run compiled, but for those of their layers that run ahead. What is not compiled
        yet is when it is first called."""

        def make(region: Region):
            def compiled(original):
                def forward(*args, **kwargs):
                    arguments = Arguments(args, kwargs)
                    key = region.key(arguments, ahead)
                    if key not in self._compiled:
                        on_compile()
                        self._compiled[key] = self._compiler(*region.trace(original, arguments, ahead))
                    made = [ahead.result(layer) for layer in region.layers_of(ahead).values()]
                    (out,) = self._compiled[key](*arguments.tensors, *made, *region.weights())
                    return out

                return forward

            return compiled

        with forwards_replaced((region.module, make(region)) for region in regions):
            yield

    def clear(self) -> None:
        self._compiled.clear()


def regions_of(unet: nn.Module) -> list[Region]:
    """The blocks of `unet` that can be compiled: those in which nobody else's Python runs."""
    return [Region(m) for m in unet.modules() if type(m).__name__ in NAMES and is_untouched(m)]


class Region:
    """One block of a UNet, which it does not keep alive."""

    def __init__(self, module: nn.Module):
        self._module = weakref.ref(module)
        self._names = [name for name, _ in (*module.named_parameters(), *module.named_buffers())]
        self._structure = _structure(module)

    @property
    def module(self) -> nn.Module:
        return self._module()

    def weights(self) -> list[torch.Tensor]:
        return [*self.module.parameters(), *self.module.buffers()]

    def layers_of(self, ahead: Ahead) -> dict[str, nn.Module]:
        """Those in this block that run ahead: their results are given to it."""
        return {name: layer for name, layer in self.module.named_modules() if layer in ahead} if len(ahead) else {}

    def key(self, arguments: Arguments, ahead: Ahead) -> Hashable:
        layouts = tuple((t.shape, t.stride(), t.dtype, t.device) for t in (*arguments.tensors, *self.weights()))
        given = tuple(self.layers_of(ahead))
        return self._structure, arguments.signature().structure, layouts, given, torch.is_autocast_enabled()

    def trace(
        self, original: Callable, arguments: Arguments, ahead: Ahead
    ) -> tuple[torch.fx.GraphModule, list[torch.Tensor]]:
        """The block's operations as a graph over the call's tensors, what runs ahead and the block's weights, and
        examples of these.

        It is traced by running it, so whatever its layers' Python does (a LoRA's hook, say) is done then and is no
        part of the graph.
        """
        call = _Call(self.module, original)
        layers = list(self.layers_of(ahead).values())
        n, m = len(arguments.tensors), len(layers)

        def function(*tensors):
            args, kwargs = arguments.put_together(tensors[:n])
            weights = {f"module.{name}": weight for name, weight in zip(self._names, tensors[n + m :], strict=True)}
            made = zip(layers, tensors[n : n + m], strict=True)
            with forwards_replaced((layer, lambda _, result=result: lambda x: result) for layer, result in made):
                return [functional_call(call, weights, args, kwargs)]

        made = [ahead.result(layer) for layer in layers]
        examples = [tensor.detach() for tensor in (*arguments.tensors, *made, *self.weights())]
        return make_fx(function, tracing_mode="fake")(*examples), examples


class _Call(nn.Module):
    """A block by its own `forward`, past what is laid over it."""

    def __init__(self, module: nn.Module, forward: Callable):
        super().__init__()
        self.module = module
        self.call = forward

    def forward(self, *args, **kwargs):
        return self.call(*args, **kwargs)


def _structure(module: nn.Module) -> Hashable:
    """What besides shapes decides the operations of a block: its classes, and the plain values in its attributes."""
    return tuple((name, type(part).__qualname__, tuple(_plain(vars(part)))) for name, part in module.named_modules())


def _plain(attributes: dict) -> Iterator[tuple]:
    for name, value in sorted(attributes.items()):
        if isinstance(value, (bool, int, float, str, torch.dtype)):
            yield name, value
        elif isinstance(value, (tuple, list)) and all(isinstance(v, (bool, int, float, str)) for v in value):
            yield name, tuple(value)
