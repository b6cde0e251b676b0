"""The executions that a host keeps from request to request, one a backend."""

from __future__ import annotations

from pathlib import Path

import pytest
from graphs import Tape
from host_loop import PAIR, plan_for, sample

from sdxl_optim.backends.api import HostHooks
from sdxl_optim.backends.pool import ExecutionPool
from sdxl_optim.run import Run
from sdxl_optim.sampling.loop import Loop

STEPS = Loop.of_steps([1] * 2)


@pytest.fixture
def made():
    """(name, cache folder, backend) of each backend that was created."""
    return []


@pytest.fixture
def pool(made):
    def create(name, cache):
        made.append((name, cache, Tape()))
        return made[-1][2]

    return ExecutionPool(cache=Path("cache"), create=create)


def test_a_backend_is_created_when_it_is_first_asked_for_and_kept(pool, made):
    assert made == []
    execution = pool.get("cudagraph")
    assert pool.get("cudagraph") is execution
    assert pool.get("inductor") is not execution
    assert [(name, cache) for name, cache, _ in made] == [("cudagraph", Path("cache")), ("inductor", Path("cache"))]


def test_eager_is_the_stock_call(pool, made):
    assert pool.get("eager") is None
    assert made == []


def test_all_but_the_named_one_are_released(pool, made):
    for name in ("cudagraph", "inductor", "onediff"):
        pool.get(name)
    pool.release_others("inductor")
    assert [backend.released for _, _, backend in made] == [1, 0, 1]
    pool.release_all()
    assert [backend.released for _, _, backend in made] == [2, 1, 2]


def test_the_hosts_hooks_are_asked(unet, made):
    prepared, said = [], []
    hooks = HostHooks(prepare=prepared.append, progress=said.append)
    pool = ExecutionPool(hooks, create=lambda name, cache: Tape())
    with Run(plan_for({}, STEPS, PAIR, unet), execution=pool.get("cudagraph")) as run:
        sample(unet, run, STEPS, PAIR)
    assert prepared == [unet, unet]
    assert said == [""]
