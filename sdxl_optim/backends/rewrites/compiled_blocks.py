"""A UNet's repeated blocks, each kind compiled once for all of its copies.

SDXL's UNet has some thirty residual blocks and rows of transformer blocks, but only nineteen kinds of them at a given
size. Each kind is traced by itself with its weights as inputs, and all blocks of that kind call the same compiled code.
This takes a fraction of the time that the whole UNet would take, weights may change or move freely, and Python around
the blocks (hooks, DeepCache, FreeU) runs as before.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from sdxl_optim.backends.call.arguments import Arguments
from sdxl_optim.backends.call.foreign_hooks import is_untouched
from sdxl_optim.backends.rewrites.layer_rewrite import LayerRewrite, bound, itself, replacements
from sdxl_optim.backends.rewrites.layers import fused_qkv
from sdxl_optim.backends.rewrites.side_stream import SideStream
from sdxl_optim.backends.rewrites.triton.substitute import kernels_substituted
from sdxl_optim.backends.rewrites.weight_layout import packed_weight, qkv_of
from sdxl_optim.unet.patching import forwards_replaced

# Of the ldm/sgm UNets, and of diffusers. The larger blocks come first: their parts are compiled on their own only if
# the whole can't be.
NAMES = (
    ("SpatialTransformer", "Transformer2DModel"),
    ("ResBlock", "ResnetBlock2D", "BasicTransformerBlock", "Upsample", "Downsample", "Upsample2D", "Downsample2D"),
)

Compiler = Callable[[torch.fx.GraphModule, list[torch.Tensor]], Callable]


class CompiledBlocks:
    """Compiled code by kind of block, shared by all UNets. compiler: (graph, example inputs) → callable."""

    def __init__(self, compiler: Compiler):
        self._compiler = compiler
        self._compiled: dict[Hashable, tuple[Callable, TreeSpec]] = {}  # with the structure of what the block returns

    def __len__(self) -> int:
        return len(self._compiled)

    @contextmanager
    def counted(self, blocks: list[CompilableBlock], side_stream: SideStream) -> Iterator[set[Hashable]]:
        """Context manager: the blocks run eagerly. Gives the set of the kinds that still have to be compiled."""
        missing: set[Hashable] = set()

        def count(block: CompilableBlock, original: Callable, *args, **kwargs):
            key = block.key(Arguments(args, kwargs), side_stream)
            if key not in self._compiled:
                missing.add(key)
            return original(*args, **kwargs)

        with forwards_replaced((block.module, bound(count, block)) for block in blocks):
            yield missing

    @contextmanager
    def applied(
        self, blocks: list[CompilableBlock], side_stream: SideStream, on_compile: Callable[[], object]
    ) -> Iterator[None]:
        """Context manager: the blocks run compiled, except for their layers on the side stream. A kind of block that is
        not compiled yet is compiled when it is first called."""

        def run_compiled(block: CompilableBlock, original: Callable, *args, **kwargs):
            arguments = Arguments(args, kwargs)
            key = block.key(arguments, side_stream)
            if key not in self._compiled:
                on_compile()
                graph, examples, structure = block.trace(original, arguments, side_stream)
                self._compiled[key] = self._compiler(graph, examples), structure
            compiled, structure = self._compiled[key]
            return tree_unflatten(compiled(*arguments.tensors, *block.given(side_stream)), structure)

        with forwards_replaced((block.module, bound(run_compiled, block)) for block in blocks):
            yield

    def clear(self) -> None:
        self._compiled.clear()


def compilable_blocks(unet: nn.Module) -> list[CompilableBlock]:
    """The blocks of `unet` in which no other extension's Python runs. None of them is inside another."""
    found: list[CompilableBlock] = []
    inside: set[nn.Module] = set()
    out = getattr(unet, "out", None)  # of the ldm/sgm layout
    candidates: list[nn.Module] = [out] if isinstance(out, nn.Sequential) else []
    candidates += [m for names in NAMES for m in unet.modules() if type(m).__name__ in names]
    for module in candidates:
        if module not in inside and is_untouched(module) and not any(map(_is_swapped, module.modules())):
            found.append(CompilableBlock(module))
            inside.update(module.modules())
    return found


def _is_swapped(module: nn.Module) -> bool:
    """Whether its class was replaced by one made at run time, as token merging does."""
    return "<locals>" in type(module).__qualname__


class CompilableBlock:
    """One block of a UNet, which it does not keep alive."""

    def __init__(self, module: nn.Module):
        self._module = weakref.ref(module)
        self._names = [name for name, _ in (*module.named_parameters(), *module.named_buffers())]
        self._structure = _structure(module)

    @property
    def module(self) -> nn.Module:
        module = self._module()
        if module is None:
            raise ReferenceError("the block is gone")
        return module

    def weights(self) -> list[torch.Tensor]:
        return [*self.module.parameters(), *self.module.buffers()]

    def products(self) -> list[tuple[list[nn.Linear], torch.Tensor]]:
        """(layers that read the same tensor, their weights as one) for weights that lie side by side."""
        found = ((layers, packed_weight(layers)) for layers in map(qkv_of, self.module.modules()) if layers)
        return [(layers, weight) for layers, weight in found if weight is not None]

    def layers_of(self, side_stream: SideStream) -> dict[str, nn.Module]:
        """The layers of this block that run on the side stream: their results are given to it."""
        return (
            {name: layer for name, layer in self.module.named_modules() if layer in side_stream}
            if len(side_stream)
            else {}
        )

    def given(self, side_stream: SideStream) -> list[torch.Tensor]:
        """What the compiled code is given behind the call's own tensors."""
        made = [side_stream.result(layer) for layer in self.layers_of(side_stream).values()]
        return [*made, *(weight for _, weight in self.products()), *self.weights()]

    def key(self, arguments: Arguments, side_stream: SideStream) -> Hashable:
        layouts = tuple((t.shape, t.stride(), t.dtype, t.device) for t in (*arguments.tensors, *self.weights()))
        made = tuple((name, side_stream.width(layer)) for name, layer in self.layers_of(side_stream).items())
        given = made, len(self.products())
        return self._structure, arguments.signature().structure, layouts, given, torch.is_autocast_enabled()

    def trace(
        self, original: Callable, arguments: Arguments, side_stream: SideStream
    ) -> tuple[torch.fx.GraphModule, list[torch.Tensor], TreeSpec]:
        """The block's operations as a graph over the call's tensors and what is `given`; examples of these; the
        structure of what the block returns.

        The block is run for that, so whatever its layers' Python does (a LoRA's hook, say) is done then and is no part
        of the graph. A picture comes out channels-last if the block's convolutions or its inputs are.
        """
        call = _BlockCall(self.module, original)
        layers, products = list(self.layers_of(side_stream).values()), [layers for layers, _ in self.products()]
        n, structures = len(arguments.tensors), []
        memory_format = _memory_format_of([*arguments.tensors, *self.weights()])

        def function(*tensors):
            rest = iter(tensors[n:])
            results = {layer: next(rest) for layer in layers}
            packed = {group[0]: next(rest) for group in products}
            weights = {f"module.{name}": weight for name, weight in zip(self._names, rest, strict=True)}
            rewrites = [_computed_already(results), fused_qkv(lambda group: packed.get(group[0]))]
            rewritten = forwards_replaced(replacements(self.module, rewrites))
            with kernels_substituted(self.module, tensors[:n]), rewritten:
                out = functional_call(call, weights, *arguments.put_together(tensors[:n]))
            leaves, structure = tree_flatten(out)
            structures.append(structure)
            return [leaf.contiguous(memory_format=memory_format) if leaf.dim() == 4 else leaf for leaf in leaves]

        examples = [tensor.detach() for tensor in (*arguments.tensors, *self.given(side_stream))]
        graph = make_fx(function, tracing_mode="fake")(*examples)
        return graph, examples, structures[-1]


def _computed_already(results: dict[nn.Module, torch.Tensor]) -> LayerRewrite:
    """The side stream's layers, whose results are given to the block."""
    return LayerRewrite(results.__contains__, itself(lambda layer, original, x: results[layer]))


def _memory_format_of(tensors: list[torch.Tensor]) -> torch.memory_format:
    pictures = (t for t in tensors if t.dim() == 4)
    last = any(t.is_contiguous(memory_format=torch.channels_last) and not t.is_contiguous() for t in pictures)
    return torch.channels_last if last else torch.contiguous_format


class _BlockCall(nn.Module):
    """A block by its own `forward`, without the one that replaces it."""

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
