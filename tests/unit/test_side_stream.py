"""Layers that read a call's own inputs run at its beginning."""

from __future__ import annotations

from functools import partial

import torch
from host_loop import traces

from sdxl_optim.backends.call.arguments import Arguments
from sdxl_optim.backends.call.body import UNetBody
from sdxl_optim.backends.rewrites.compiled_blocks import CompiledBlocks, compilable_blocks
from sdxl_optim.backends.rewrites.side_stream import SideStream
from sdxl_optim.sampling.call import Kind


def body_of(unet, inputs) -> UNetBody:
    return UNetBody(unet, unet.forward, Arguments(tuple(inputs), {}), Kind(), None)


def text_layers(unet) -> list[str]:
    return [name for name, _ in unet.named_modules() if name.endswith(("attn2.to_k", "attn2.to_v"))]


@torch.no_grad()
def test_the_texts_keys_and_values_are_found(unet, inputs):
    side_stream = SideStream()
    expected = unet(*inputs)
    [found] = body_of(unet, inputs)(inputs, partial(side_stream.discover, unet))
    assert torch.equal(found, expected)
    assert sorted(name for name, layer in unet.named_modules() if layer in side_stream) == sorted(text_layers(unet))
    assert traces(unet) == []


@torch.no_grad()
def test_they_run_before_the_rest_and_once(unet, inputs):
    body, side_stream = body_of(unet, inputs), SideStream()
    body(inputs, partial(side_stream.discover, unet))
    ran, handles = [], []
    for name, layer in unet.named_modules():
        handles.append(layer.register_forward_hook(lambda module, args, out, name=name: ran.append(name)))
    others = [t + 1 if t.is_floating_point() else t for t in inputs]
    expected = unet(*others)
    ran.clear()
    [out] = body(others, side_stream.prefetch)
    for handle in handles:
        handle.remove()
    assert torch.equal(out, expected)
    layers = text_layers(unet)
    assert sorted(ran[: len(layers)]) == sorted(layers)
    # handed out afterwards, where the UNet calls them: their own hooks see that, their products are not made again
    assert ran.index("time_embed.0") == len(layers)
    assert side_stream.pending == 0
    assert traces(unet) == []


@torch.no_grad()
def test_a_layer_that_is_given_something_else_is_left_alone(unet, inputs):
    block = next(m for m in unet.modules() if type(m).__name__ == "BasicTransformerBlock")
    forward = block.attn2.forward
    block.attn2.forward = lambda x, context: forward(x, context * 2)  # a hypernetwork, say
    body, side_stream = body_of(unet, inputs), SideStream()
    expected = unet(*inputs)
    body(inputs, partial(side_stream.discover, unet))
    assert block.attn2.to_k not in side_stream
    assert len(side_stream) == len(text_layers(unet)) - 2
    assert torch.equal(body(inputs, side_stream.prefetch)[0], expected)
    del block.attn2.forward  # found without it, and then it acts again
    body(inputs, partial(side_stream.discover, unet))
    block.attn2.forward = lambda x, context: forward(x, context * 2)
    assert torch.equal(body(inputs, side_stream.prefetch)[0], expected)


@torch.no_grad()
def test_compiled_blocks_take_the_results(unet, inputs):
    def products(graph) -> int:
        return sum("addmm" in str(node.target) or "mm.default" in str(node.target) for node in graph.graph.nodes)

    expected, counts = unet(*inputs), []
    for look in (False, True):
        body, side_stream, graphs = body_of(unet, inputs), SideStream(), []
        compiled = CompiledBlocks(lambda graph, examples, graphs=graphs: graphs.append(graph) or graph)
        if look:
            body(inputs, partial(side_stream.discover, unet))
        for _ in range(2):
            with compiled.applied(compilable_blocks(unet), side_stream, lambda: None):
                [out] = body(inputs, side_stream.prefetch)
            assert torch.allclose(out, expected, atol=1e-5)
        counts.append((len(graphs), sum(map(products, graphs))))
    (kinds, all_of_them), (same_kinds, without) = counts
    assert kinds == same_kinds
    transformers = {m.attn1.to_q.in_features for m in unet.modules() if type(m).__name__ == "BasicTransformerBlock"}
    assert all_of_them - without >= 2 * len(transformers)
