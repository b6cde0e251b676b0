"""Weights applied out for a backend: the same model to everybody else, and put back."""

from __future__ import annotations

import weakref
from functools import partial

import pytest
import torch
from graphs import Tape
from host_loop import PAIR, plan_for, sample, traces
from torch import nn

from sdxl_optim.backends.call.arguments import Arguments
from sdxl_optim.backends.call.body import UNetBody
from sdxl_optim.backends.execution import Execution
from sdxl_optim.backends.rewrites.compiled_blocks import CompiledBlocks, compilable_blocks
from sdxl_optim.backends.rewrites.half_precision import without_autocast
from sdxl_optim.backends.rewrites.side_stream import SideStream
from sdxl_optim.backends.rewrites.weight_layout import (
    AppliedLayout,
    FusedLinear,
    WeightLayout,
    packed_weight,
    qkv_of,
    text_kv_of,
)
from sdxl_optim.run import Run
from sdxl_optim.sampling.call import Kind
from sdxl_optim.sampling.loop import Loop
from sdxl_optim.unet.patching import forwards_replaced

EVERYTHING = WeightLayout(channels_last_from=0)
STEPS = Loop.of_steps([1] * 3)


@pytest.fixture
def applied(unet):
    applied = AppliedLayout()
    EVERYTHING.apply(unet, applied)
    return applied


def places(unet) -> dict[str, tuple]:
    return {name: (p.data_ptr(), p.stride()) for name, p in unet.named_parameters()}


def values(unet) -> dict[str, torch.Tensor]:
    return {name: p.clone() for name, p in unet.state_dict().items()}


def is_alone(weight: torch.Tensor) -> bool:
    return weight.is_contiguous() and weight.untyped_storage().nbytes() == weight.nbytes


def attentions(unet) -> list[nn.Module]:
    return [m for m in unet.modules() if qkv_of(m)]


def texts(unet) -> list[list[nn.Linear]]:
    return [layers for layers in map(text_kv_of, unet.modules()) if layers]


def products(graph) -> int:
    return sum("mm.default" in str(node.target) for node in graph.graph.nodes)


@torch.no_grad()
def test_values_stay_and_undoing_leaves_every_weight_by_itself(unet, inputs):
    before, expected = values(unet), unet(*inputs)
    applied = AppliedLayout()
    EVERYTHING.apply(unet, applied)
    assert all(torch.equal(p, before[name]) for name, p in unet.state_dict().items())
    assert any(not p.is_contiguous() for p in unet.parameters())
    assert torch.allclose(unet(*inputs), expected, atol=1e-4)
    applied.undo()
    assert all(map(is_alone, unet.parameters()))
    assert all(torch.equal(p, before[name]) for name, p in unet.state_dict().items())
    assert torch.equal(unet(*inputs), expected)


def test_self_attentions_and_the_texts_layers_lie_together(unet, applied):
    assert len(attentions(unet)) == sum(type(m).__name__ == "BasicTransformerBlock" for m in unet.modules())
    assert len(texts(unet)) == sum(type(m).__name__ == "SpatialTransformer" for m in unet.modules())
    for layers in (*map(qkv_of, attentions(unet)), *texts(unet)):
        weight = packed_weight(layers)
        assert torch.equal(weight, torch.cat([layer.weight for layer in layers]))
        layers[1].weight.data.mul_(2)  # a LoRA that merges in place
        assert torch.equal(weight, torch.cat([layer.weight for layer in layers]))


def test_large_convolutions_alone(unet):
    channels = sorted({min(m.weight.shape[:2]) for m in unet.modules() if isinstance(m, nn.Conv2d)})[-1]
    WeightLayout(channels).apply(unet, AppliedLayout())
    for m in unet.modules():
        if isinstance(m, nn.Conv2d) and m.kernel_size != (1, 1):
            assert m.weight.is_contiguous() == (min(m.weight.shape[:2]) < channels)


def test_what_the_user_laid_out_stays_so(unet):
    convolution = next(m for m in unet.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3))
    convolution.to(memory_format=torch.channels_last)
    applied = AppliedLayout()
    EVERYTHING.apply(unet, applied)
    applied.undo()
    assert not convolution.weight.is_contiguous()


def test_a_bias_that_a_lora_adds_is_not_lost(unet, applied):
    layers = qkv_of(attentions(unet)[0])
    layers[0].bias = nn.Parameter(torch.ones(layers[0].out_features))
    assert packed_weight(layers) is None


def test_it_keeps_no_model_alive(applied, unet):
    n = len(applied)
    for module in unet.modules():
        if hasattr(module, "attn1"):
            del module.attn1
    assert len(applied) < n


@torch.no_grad()
def test_one_product_is_made_once_and_only_of_one_tensor():
    layers = [nn.Linear(4, 6, bias=False) for _ in range(3)]
    weight = torch.cat([layer.weight for layer in layers])
    x, other = torch.randn(2, 5, 4), torch.randn(2, 5, 4)
    plain = [layer(x) for layer in layers], layers[2](other)
    one = FusedLinear(layers, weight)
    with forwards_replaced(one.forwards()):
        for _ in range(2):
            given = x.clone()
            alive = weakref.ref(given)
            assert all(map(torch.allclose, [layer(given) for layer in layers], plain[0]))
            assert one.pending == 0
            del given
            assert alive() is None
        layers[0](x)
        assert one.pending == 2
        assert torch.equal(layers[2](other), plain[1])
    assert traces(nn.ModuleList(layers)) == []


@torch.no_grad()
def test_bare_calls_make_one_product_of_three(unet, inputs, applied):
    expected = unet(*inputs)
    calls: list[str] = []
    handles = [layer.register_forward_hook(lambda *_: calls.append("")) for layer in qkv_of(attentions(unet)[0])]
    counts = []
    linear = nn.functional.linear
    for way in (without_autocast, None):
        seen = []

        def counted(x, weight, bias=None, seen=seen):
            seen.append(weight.shape)
            return linear(x, weight, bias)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(nn.functional, "linear", counted)
            if way:
                with way(unet):
                    assert torch.allclose(unet(*inputs), expected, atol=1e-5)
            else:
                unet(*inputs)
        counts.append(len(seen))
    assert counts[1] - counts[0] == 2 * len(attentions(unet))
    assert len(calls) == 6  # the layers' own hooks see that they are called
    for handle in handles:
        handle.remove()


@torch.no_grad()
def test_the_text_is_one_product_for_each_row_of_blocks(unet, inputs, applied):
    body = UNetBody(unet, unet.forward, Arguments(tuple(inputs), {}), Kind(), None)
    side_stream, expected = SideStream(), unet(*inputs)
    body(inputs, partial(side_stream.discover, unet))
    assert side_stream.products == texts(unet)
    assert all(side_stream.width(layers[0]) == sum(layer.out_features for layer in layers) for layers in texts(unet))
    assert torch.allclose(body(inputs, side_stream.prefetch)[0], expected, atol=1e-5)


@torch.no_grad()
def test_compiled_blocks_make_one_product_of_three(unet, inputs):
    body = UNetBody(unet, unet.forward, Arguments(tuple(inputs), {}), Kind(), None)
    expected, counts = unet(*inputs), []
    for _ in range(2):
        graphs: list = []
        compiled = CompiledBlocks(lambda graph, examples, graphs=graphs: graphs.append(graph) or graph)
        regions = compilable_blocks(unet)
        with compiled.applied(regions, SideStream(), lambda: None):
            [out] = body(inputs)
            assert torch.allclose(body(inputs)[0], out)
        assert torch.allclose(out, expected, atol=1e-4)
        counts.append(sum(map(products, graphs)))
        EVERYTHING.apply(unet, AppliedLayout())
    kinds = {tuple(m.attn1.to_q.in_features for m in st.transformer_blocks) for st in unet.modules() if _is_row(st)}
    assert counts[0] - counts[1] == 2 * sum(map(len, kinds))


def _is_row(module: nn.Module) -> bool:
    return type(module).__name__ == "SpatialTransformer"


@torch.no_grad()
def test_pictures_stay_channels_last_between_compiled_blocks(unet, inputs, applied):
    orders = []

    def compiler(graph, examples):
        def run(*tensors):
            assert all(t.stride() == e.stride() for t, e in zip(tensors, examples, strict=True))
            out = graph(*tensors)
            orders.extend(t.is_contiguous(memory_format=torch.channels_last) for t in out if t.dim() == 4)
            return out

        return run

    with CompiledBlocks(compiler).applied(compilable_blocks(unet), SideStream(), lambda: None):
        unet(*inputs)
    assert orders
    assert all(orders)


def test_rows_of_blocks_are_compiled_whole_and_their_blocks_where_they_cannot_be(unet):
    names = [type(region.module).__name__ for region in compilable_blocks(unet)]
    assert names.count("SpatialTransformer") == sum(map(_is_row, unet.modules()))
    assert "BasicTransformerBlock" not in names
    assert names.count("Sequential") == 1
    row = next(filter(_is_row, unet.modules()))
    forward = row.proj_in.forward
    row.proj_in.forward = lambda x: forward(x)  # somebody else's
    regions = [region.module for region in compilable_blocks(unet)]
    assert row not in regions
    assert all(block in regions for block in row.transformer_blocks)


def test_a_block_of_a_class_made_meanwhile_is_left_out_and_its_row(unet):
    row = next(filter(_is_row, unet.modules()))
    swapped, *others = row.transformer_blocks

    class Merging(type(swapped)):
        pass

    swapped.__class__ = Merging
    regions = [region.module for region in compilable_blocks(unet)]
    assert row not in regions
    assert swapped not in regions
    assert all(block in regions for block in others)


# --- by an execution


@pytest.fixture
def tape():
    tape = Tape()
    tape.weight_layout = EVERYTHING
    return tape


def run(unet, execution=None, steps=STEPS, settings=None):
    outputs = []
    handle = unet.register_forward_hook(lambda module, args, out: outputs.append(out.clone()))
    try:
        with Run(plan_for(settings or {}, steps, PAIR, unet), execution=execution) as run:
            sample(unet, run, steps, PAIR)
    finally:
        handle.remove()
    return outputs, run.report


def near(a, b) -> bool:
    return len(a) == len(b) and all(torch.allclose(x, y, atol=1e-3) for x, y in zip(a, b, strict=True))


def test_weights_are_laid_out_while_anything_is_prepared(unet, tape):
    expected, _ = run(unet)
    before = places(unet)
    execution = Execution(tape)
    for _ in range(2):
        found, report = run(unet, execution)
        assert near(found, expected)
        assert report.execution.fallbacks == 0
        during = places(unet)
        assert during != before
    assert tape.prepared == 1  # they were not taken for moved
    execution.release()
    assert all(map(is_alone, unet.parameters()))
    again, _ = run(unet)
    assert all(map(torch.equal, again, expected))
    found, _ = run(unet, execution)
    assert near(found, expected)
    assert places(unet) != before
    assert tape.prepared == 2


def test_moved_weights_are_laid_out_again(unet, tape):
    execution = Execution(tape)
    expected, _ = run(unet, execution)
    unet.double().float()
    assert any(packed_weight(qkv_of(m)) is None for m in attentions(unet))
    found, report = run(unet, execution)
    assert all(map(torch.equal, found, expected))
    assert report.execution.fallbacks == 0
    assert all(packed_weight(qkv_of(m)) is not None for m in attentions(unet))
    execution.release()
    assert all(map(is_alone, unet.parameters()))


def test_where_calls_are_the_stock_ones_weights_are_too(unet, tape):
    expected, _ = run(unet)
    execution = Execution(tape)
    run(unet, execution)
    block = unet.middle_block[0].in_layers[2]
    handle = block.register_forward_hook(lambda module, args, out: None)  # somebody else's
    found, report = run(unet, execution)
    handle.remove()
    assert report.execution.replays == 0
    assert report.notes
    assert all(map(torch.equal, found, expected))
    assert all(map(is_alone, unet.parameters()))


def test_where_memory_is_short_once_it_is_not_tried_again(unet, tape, monkeypatch):
    expected, _ = run(unet)
    tape.fail["after"] = torch.cuda.OutOfMemoryError("none left")
    tried, prepare = [], tape.prepare
    monkeypatch.setattr(tape, "prepare", lambda *args: tried.append(1) or prepare(*args))
    found, report = run(unet, Execution(tape))
    assert all(map(torch.equal, found, expected))
    assert len(tried) == 1
    assert report.execution.fallbacks == 3
    assert all(map(is_alone, unet.parameters()))


def test_no_memory_to_put_them_back_is_no_error(unet, tape, monkeypatch):
    expected, _ = run(unet)
    execution = Execution(tape)
    run(unet, execution)
    tape.fail["replay"] = torch.cuda.OutOfMemoryError("none left")

    def refuse(self):
        raise torch.cuda.OutOfMemoryError("none left")

    monkeypatch.setattr(AppliedLayout, "undo", refuse)
    found, report = run(unet, execution)
    assert near(found, expected)
    assert report.execution.fallbacks == 3
    monkeypatch.undo()
    execution.release()
    assert all(map(is_alone, unet.parameters()))
