"""DeepCache's memory: how much is kept, that it is counted, and that it is freed."""

from __future__ import annotations

import gc
import tracemalloc
import weakref

import host_loop
import ldm_unet
import pytest
import torch
from host_loop import PAIR, DeepCacheCalls, plan_for, sample, traces
from hypothesis import given, settings
from hypothesis import strategies as st

from sdxl_optim.run import Run
from sdxl_optim.sampling.loop import Loop, Rows
from sdxl_optim.unet.layout import read_layout

DEEPCACHE = {"deepcache": {"enabled": True, "cache_interval": 2}}
UNET = ldm_unet.tiny_unet("sdxl")


class Holding:
    """Weak references to every tensor that the keeper block has put out."""

    def __init__(self, unet, branch: int = 0):
        layout = read_layout(unet)
        self.tensors, self.bytes = [], 0
        keeper = layout.blocks[2 * layout.depth - 1 - branch]
        self.handle = keeper[-1].register_forward_hook(self._seen)

    def _seen(self, module, args, out):
        self.tensors.append(weakref.ref(out))
        self.bytes = max(self.bytes, out.numel() * out.element_size())

    @property
    def alive(self) -> int:
        return sum(ref() is not None for ref in self.tensors)


@pytest.fixture
def holding():
    holding = Holding(UNET)
    yield holding
    holding.handle.remove()


@pytest.mark.parametrize("calls", [1, 2, 3])
@pytest.mark.parametrize("rows", [PAIR, Rows(1, 1, same_length=False)], ids=["joint", "split"])
def test_one_entry_a_place_and_part_and_none_afterwards(holding, calls, rows):
    loop = Loop.of_steps([calls] * 9)
    most = 0

    def watch(index):
        nonlocal most
        most = max(most, holding.alive)

    parts = 1 if rows.same_length else 2
    with Run(plan_for(DEEPCACHE, loop, rows, UNET)) as run:
        sample(UNET, run, loop, rows, before_call=watch)
    gc.collect()
    assert most == calls * parts
    assert holding.alive == 0
    assert run.report.store_bytes == calls * parts * holding.bytes > 0


def test_freed_after_an_exception(holding):
    loop = Loop.of_steps([1] * 6)

    def fail(index):
        if index == 3:
            raise RuntimeError("interrupted")

    run = Run(plan_for(DEEPCACHE, loop, unet=UNET))
    with pytest.raises(RuntimeError), run:
        sample(UNET, run, loop, before_call=fail)
    gc.collect()
    assert holding.tensors
    assert holding.alive == 0
    assert run.report.store_bytes == holding.bytes


def test_freed_when_another_model_takes_over(holding):
    refiner = ldm_unet.tiny_unet("refiner")
    with Run(plan_for(DEEPCACHE, Loop.of_steps([1] * 4), unet=UNET)) as run:
        sample(UNET, run, Loop.of_steps([1, 1]))
        gc.collect()
        assert holding.alive == 1
        run.attach(refiner)
        gc.collect()
        assert holding.alive == 0


def test_freed_once_it_is_disabled(holding):
    layout = read_layout(UNET)
    args = host_loop.call_inputs(UNET, 2, 0).args
    with DeepCacheCalls(layout) as calls:
        calls.begin(cached=False)
        UNET(*args)
        UNET(*args)
        assert calls.at_work.store.disabled is not None
        gc.collect()
        assert holding.alive == 0
        assert calls.begin(cached=True) is False
    assert "ran the UNet's blocks twice" in calls.refused


def test_the_store_is_empty_once_detached(holding):
    layout = read_layout(UNET)
    with DeepCacheCalls(layout) as calls:
        calls.begin(cached=False)
        UNET(*host_loop.call_inputs(UNET, 2, 0).args)
        assert holding.alive == 1
    assert holding.alive == 0
    assert calls.begin(cached=True) is False


def test_calls_of_others_are_not_kept(holding):
    with Run(plan_for(DEEPCACHE, Loop.of_steps([1] * 4), unet=UNET)) as run:
        run.attach(UNET)
        UNET(*host_loop.call_inputs(UNET, 2, 0).args)
        gc.collect()
        assert holding.alive == 0


@given(st.integers(0, 8))
@settings(deadline=None, max_examples=9)
def test_the_bytes_are_those_of_the_stored_feature(branch):
    layout = read_layout(UNET)
    holding = Holding(UNET, branch)
    loop = Loop.of_steps([1, 1])
    wanted = {"deepcache": {"enabled": True, "cache_branch_id": branch}}
    with Run(plan_for(wanted, loop, unet=UNET)) as run:
        sample(UNET, run, loop, size=(16, 8))
    holding.handle.remove()
    assert run.report.store_bytes == holding.bytes
    assert layout.channels[2 * layout.depth - 1 - branch] * 2 * 4 <= holding.bytes


def test_a_skipped_block_puts_out_no_memory_of_its_own():
    layout = read_layout(UNET)
    deep = layout.blocks[5]
    with DeepCacheCalls(layout) as calls:
        calls.begin(cached=False)
        UNET(*host_loop.call_inputs(UNET, 2, 0).args)
        assert calls.begin(cached=True)
        h = torch.randn(2, 7, 8, 8)
        out = deep(h, None, None)
        assert out.shape == (2, layout.channels[5], 1, 1)
        assert out.untyped_storage().data_ptr() == h.untyped_storage().data_ptr()


def test_nothing_of_a_run_outlives_it():
    loop = Loop.of_steps([1] * 4)
    run = Run(plan_for({**DEEPCACHE, "freeu": {"enabled": True}}, loop, unet=UNET))
    with run:
        sample(UNET, run, loop)
    gone = weakref.ref(run)
    del run
    gc.collect()
    assert gone() is None


@pytest.mark.slow
def test_many_runs_do_not_grow():
    loop = Loop.of_steps([1] * 2)
    everything = {**DEEPCACHE, "freeu": {"enabled": True}, "cfg_cutoff": {"enabled": True, "stop": 0.5}}

    def runs(count: int) -> int:
        for _ in range(count):
            with Run(plan_for(everything, loop, unet=UNET)) as run:
                sample(UNET, run, loop)
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        before = runs(20)  # Python's own free lists fill first
        grown = runs(40) - before
    finally:
        tracemalloc.stop()
    assert grown < 40 * 600  # a run that stayed would be several times as much
    assert traces(UNET) == []
