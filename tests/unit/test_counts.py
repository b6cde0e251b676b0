"""The report against counts that the tests' own hooks take, for random settings, loops and rows."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import ldm_unet
import torch
from host_loop import plan_for, sample, traces, watched
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sdxl_optim.run import Run
from sdxl_optim.sampling.loop import Counts, Loop, Rows

BASE = ldm_unet.tiny_unet("sdxl")
REFINER = ldm_unet.tiny_unet("refiner")

fractions = st.floats(0, 1)
any_settings = st.fixed_dictionaries(
    {
        "freeu": st.fixed_dictionaries(
            {
                "enabled": st.booleans(),
                "version": st.sampled_from([1, 2]),
                "start": fractions,
                "stop": fractions,
            }
        ),
        "cfg_cutoff": st.fixed_dictionaries({"enabled": st.booleans(), "stop": fractions}),
        "deepcache": st.fixed_dictionaries(
            {
                "enabled": st.sampled_from([True, True, True, False]),
                "cache_interval": st.integers(1, 5),
                "cache_branch_id": st.integers(0, 8),
                "mode": st.sampled_from(["uniform", "nonuniform"]),
                "start": st.sampled_from([0.0, 0.0, 0.2]),
                "stop": st.sampled_from([1.0, 1.0, 0.7]),
            }
        ),
    }
)


@st.composite
def any_rows(draw) -> Rows:
    batch = draw(st.integers(1, 2))
    return Rows(batch, batch, batch, draw(st.booleans()), draw(st.booleans()))


@st.composite
def any_loop(draw) -> Loop:
    calls = Loop.of_steps(draw(st.lists(st.sampled_from([1, 1, 2]), min_size=1, max_size=9))).calls
    skipped = draw(st.sets(st.integers(0, len(calls) - 1))) if draw(st.booleans()) else set()
    switch = draw(st.integers(1, len(calls))) if draw(st.booleans()) else len(calls)
    return Loop(tuple(replace(c, host_skips=i in skipped, model=int(i >= switch)) for i, c in enumerate(calls)))


@given(any_settings, any_rows(), any_loop())
@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow])
def test_the_report_is_what_happened_and_what_was_foreseen(wanted, rows, loop):
    plan = plan_for(wanted, loop, rows, BASE)
    run = Run(plan)
    with watched(BASE) as base, watched(REFINER) as refiner, run:
        sample(BASE, run, loop, rows, models={0: BASE, 1: REFINER})
    full, cached = base.full + refiner.full, base.cached + refiner.cached
    stock = sum(rows.cond if c.host_skips else rows.cond + rows.uncond for c in loop.calls)
    seen = Counts(len(loop.calls), full, cached, base.rows + refiner.rows, stock)
    assert run.report.counts == seen == plan.prediction
    assert run.report.as_predicted is True
    assert run.report.extra_calls == 0
    assert run.report.store_bytes > 0 or not cached
    assert run.report.store_bytes == 0 or plan.config("deepcache") is not None
    assert traces(BASE) == traces(REFINER) == []
    depth, branch = len(BASE.input_blocks), wanted["deepcache"]["cache_branch_id"]
    expected = Counter()
    for block in range(2 * depth + 1):
        skipped = branch < block <= 2 * depth - 1 - branch
        expected[block] = base.full if skipped else base.full + base.cached
    assert +base.touched == +expected


@given(st.integers(0, 12), st.integers(0, 12))
@settings(deadline=None, max_examples=15)
def test_a_loop_that_breaks_off_is_counted_as_far_as_it_went(made, foreseen):
    """The sampler makes another number of calls than rehearsed: an interrupt, or a host that changed."""
    wanted = {"deepcache": {"enabled": True}, "freeu": {"enabled": True}}
    run = Run(plan_for(wanted, Loop.of_steps([1] * foreseen), unet=BASE))
    with watched(BASE) as seen, run:
        run.attach(BASE)
        for i in range(made):
            run.begin_call(2, 2, 1)
            BASE(*ldm_unet.random_inputs(BASE.config, 2, (8, 8), seed=i).args)
    assert run.report.counts == Counts(made, seen.full, seen.cached, 2 * made, 2 * made)
    assert run.report.as_predicted == (made == foreseen)
    assert seen.cached == sum(i % 3 > 0 for i in range(min(made, foreseen)))


def test_the_tests_own_hooks_see_skipped_blocks():
    """The meta-test: what `watched` calls full and cached is what the blocks did."""
    args = ldm_unet.random_inputs(BASE.config, 2, (8, 8)).args
    with watched(BASE) as seen:
        BASE(*args)
        BASE.middle_block.forward = lambda h, *args: torch.zeros_like(h)
        BASE(*args)
        del BASE.middle_block.forward
    assert (seen.full, seen.cached, seen.rows) == (1, 1, 4)
