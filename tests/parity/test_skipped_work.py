"""DeepCache's cached steps at SDXL's full size: FLOPs counted on the meta device, and the modules called."""

from __future__ import annotations

import host_loop
import ldm_unet
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from sdxl_optim.run import Run
from sdxl_optim.sampling.loop import Loop
from sdxl_optim.unet.layout import read_layout


@pytest.fixture(scope="module")
def full_size():
    with torch.device("meta"):
        return ldm_unet.UNetModel(ldm_unet.SDXL).eval().requires_grad_(False)


def meta_inputs(config, rows: int = 2, size=(128, 128)) -> tuple:
    shapes = (rows, config.in_channels, *size), (rows,), (rows, 77, config.context), (rows, config.y_channels)
    return tuple(torch.empty(shape, device="meta") for shape in shapes)


def flops(unet, inputs) -> int:
    counter = FlopCounterMode(display=False)
    with counter:
        out = unet(*inputs)
    assert out.shape == inputs[0].shape
    return counter.get_total_flops()


def cached_flops(unet, branch: int) -> tuple[int, int, set[str]]:
    """FLOPs of a full and of a cached call, and the names of the modules called in the cached one."""
    plan = host_loop.plan_for(
        {"deepcache": {"enabled": True, "cache_branch_id": branch}}, Loop.of_steps([1, 1]), unet=unet
    )
    inputs, called, handles = meta_inputs(unet.config), set(), []
    with Run(plan) as run:
        run.attach(unet)
        run.begin_call(2, 2, 1)
        full = flops(unet, inputs)
        for name, module in unet.named_modules():
            handles.append(module.register_forward_hook(lambda m, a, o, name=name: called.add(name)))
        run.begin_call(2, 2, 1)
        cached = flops(unet, inputs)
    for handle in handles:
        handle.remove()
    return full, cached, called


def test_the_layout_is_the_real_one_in_size(full_size):
    # the published checkpoints' numbers of parameters
    assert sum(p.numel() for p in full_size.parameters()) == 2_567_463_684
    with torch.device("meta"):
        sd15 = ldm_unet.UNetModel(ldm_unet.SD15)
    assert sum(p.numel() for p in sd15.parameters()) == 859_520_964


def test_a_full_call_costs_what_a_stock_call_costs(full_size):
    stock = flops(full_size, meta_inputs(full_size.config))
    full, _, _ = cached_flops(full_size, 0)
    assert full == stock
    assert 10e12 < stock < 20e12  # SDXL at 1024×1024, two rows


def test_a_cached_call_at_branch_0_costs_under_3_percent(full_size):
    full, cached, called = cached_flops(full_size, 0)
    assert 0 < cached < 0.03 * full
    assert "input_blocks.0.0" in called
    assert "output_blocks.8.0" in called
    skipped = ["middle_block.", *(f"input_blocks.{i}." for i in range(1, 9))]
    skipped += [f"output_blocks.{i}." for i in range(8)]
    assert [name for name in called if name.startswith(tuple(skipped))] == []


@pytest.mark.parametrize("branch", [1, 5, 8])
def test_no_module_below_the_branch_is_called(full_size, branch):
    full, cached, called = cached_flops(full_size, branch)
    depth = read_layout(full_size).depth
    skipped = ["middle_block."]
    skipped += [f"input_blocks.{i}." for i in range(branch + 1, depth)]
    skipped += [f"output_blocks.{i}." for i in range(depth - 1 - branch)]
    assert [name for name in called if name.startswith(tuple(skipped))] == []
    for i in range(branch + 1):
        assert f"input_blocks.{i}.0" in called
        assert f"output_blocks.{depth - 1 - i}.0" in called
    assert cached < full
