"""The ordering rules: windows, positions of full steps, reuse of stored rows, and the prediction."""

from __future__ import annotations

from dataclasses import replace

import pytest
from host_loop import host_parts, plan_for, step_plan
from hypothesis import given
from hypothesis import strategies as st

from sdxl_optim.planning.predict import predict
from sdxl_optim.sampling.loop import (
    Call,
    Counts,
    Loop,
    Rows,
    window,
)
from sdxl_optim.techniques.deepcache.positions import full_steps_nonuniform, full_steps_uniform
from sdxl_optim.techniques.deepcache.reuse import Forecast, Stored, usable_rows


def foretold(steps, loop: Loop, rows: Rows) -> Counts:
    """The counts of a run with DeepCache's store."""
    return predict(steps, loop, rows, [Forecast("deepcache")])


fractions = st.floats(0, 1)
some_steps = st.integers(0, 60)
intervals = st.integers(1, 10)


@st.composite
def any_rows(draw) -> Rows:
    """Rows of pictures with one or more prompts each; uncond is doubled as instruct-pix2pix does."""
    batch = draw(st.integers(1, 3))
    cond = sum(draw(st.lists(st.integers(1, 2), min_size=batch, max_size=batch)))
    uncond = batch * draw(st.sampled_from([1, 1, 1, 2]))
    return Rows(cond, uncond, batch, draw(st.booleans()), draw(st.booleans()))


@st.composite
def any_loop(draw, max_steps: int = 25) -> Loop:
    """1 to 3 calls a step; in some the host skips uncond; a second model may take over."""
    counts = draw(st.lists(st.sampled_from([1, 1, 2, 3]), max_size=max_steps))
    calls = Loop.of_steps(counts).calls
    skips = draw(st.lists(st.booleans(), min_size=len(calls), max_size=len(calls))) if draw(st.booleans()) else []
    switch = draw(st.integers(0, len(calls)))
    calls = [replace(c, host_skips=bool(skips) and skips[i], model=int(i >= switch)) for i, c in enumerate(calls)]
    return Loop(tuple(calls))


step_plans = st.builds(step_plan, st.booleans(), st.booleans(), st.booleans())


# --- windows


@given(fractions, fractions, some_steps)
def test_a_window_is_half_open(start, stop, n):
    inside = window(start, stop, n)
    for i in range(-1, n + 1):
        assert (i in inside) == (int(start * n) <= i < int(stop * n))


@given(fractions, some_steps)
def test_two_windows_that_meet_share_no_step_and_leave_none_out(middle, n):
    assert [*window(0.0, middle, n), *window(middle, 1.0, n)] == list(range(n))


@pytest.mark.parametrize("n", [0, 1])
def test_loops_without_and_with_one_step(n):
    assert list(window(0.0, 1.0, n)) == list(range(n))
    assert list(window(0.0, 0.99, n)) == []
    assert full_steps_uniform(n, 3) == full_steps_nonuniform(n, 3, 0.5, 2.0) == frozenset(range(n))
    loop = Loop.of_steps([1] * n)
    assert loop.n == n
    plan = plan_for({"deepcache": {"enabled": True}, "cfg_cutoff": {"enabled": True, "stop": 1.0}}, loop)
    assert plan.prediction == Counts(calls=n, full=n, rows=2 * n, stock_rows=2 * n)


def test_a_loop_counts_its_steps_not_its_calls():
    loop = Loop.of_steps([2, 2, 1])
    assert [(c.step, c.place) for c in loop.calls] == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)]
    assert loop.n == 3


# --- positions of full steps


@given(some_steps, intervals)
def test_uniform_is_every_interval_th_from_the_first(n, interval):
    full = full_steps_uniform(n, interval)
    assert sorted(full) == [i for i in range(n) if i % interval == 0]


@given(some_steps, intervals, fractions, st.floats(1, 4))
def test_nonuniform_has_as_many_full_steps_as_uniform_and_begins_with_one(n, interval, center, power):
    full = full_steps_nonuniform(n, interval, center, power)
    assert len(full) == len(full_steps_uniform(n, interval))
    assert full <= set(range(n))
    assert n == 0 or 0 in full


@given(st.integers(1, 60), intervals, fractions)
def test_nonuniform_with_power_1_is_evenly_spaced(n, interval, center):
    full = sorted(full_steps_nonuniform(n, interval, center, 1.0))
    gaps = [b - a for a, b in zip(full, [*full[1:], n], strict=True)]
    assert max(gaps) - min(gaps) <= 2


@pytest.mark.parametrize(
    ("n", "interval", "center", "power", "steps"),
    [
        (12, 3, 0.3, 1.0, [0, 3, 6, 9]),
        # evenly from -(15 ** (1/1.4)) to 35 ** (1/1.4), to the power of 1.4, moved by 15, rounded down
        (50, 5, 0.3, 1.4, [0, 5, 10, 13, 15, 19, 24, 29, 35, 42]),
        # … and where two fall on step 20, the second goes to the nearest free one
        (40, 4, 0.5, 2.0, [0, 7, 12, 16, 19, 20, 21, 23, 27, 32]),
    ],
)
def test_nonuniform_positions(n, interval, center, power, steps):
    assert sorted(full_steps_nonuniform(n, interval, center, power)) == steps


@pytest.mark.parametrize("center", [0.2, 0.5, 0.8])
def test_nonuniform_gathers_around_its_centre(center):
    n = 100
    full = sorted(full_steps_nonuniform(n, 5, center, 2.0))
    near = sum(abs(i - center * n) <= 10 for i in full)
    uniform_near = sum(abs(i - center * n) <= 10 for i in full_steps_uniform(n, 5))
    assert near > 1.5 * uniform_near


# --- reuse


@pytest.mark.parametrize(
    ("stored", "rows", "cond_rows", "model", "shape", "usable"),
    [
        (None, 2, 1, 0, (), None),
        (Stored(2, 0), 2, 1, 0, (), 2),
        (Stored(2, 0), 1, 1, 0, (), 1),  # the cutoff: the cond rows come first
        (Stored(6, 0), 3, 3, 0, (), 3),
        (Stored(4, 0), 1, 2, 0, (), None),  # fewer rows that are not the cond rows
        (Stored(4, 0), 3, 2, 0, (), None),
        (Stored(1, 0), 2, 1, 0, (), None),  # uncond rows come back
        (Stored(2, 0), 2, 1, 1, (), None),  # another model
        (Stored(2, 0, (8, 8)), 2, 1, 0, (8, 9), None),
        (Stored(2, 0, (8, 8)), 1, 1, 0, (8, 8), 1),
    ],
)
def test_usable_rows(stored, rows, cond_rows, model, shape, usable):
    assert usable_rows(stored, rows, cond_rows, model, shape) == usable


@given(any_rows(), st.booleans())
def test_unet_calls_are_split_as_the_host_splits_them(rows, with_uncond):
    parts = host_parts(rows, cut=False, host_skips=not with_uncond)
    assert rows.unet_calls(with_uncond) == tuple(len(part) for part in parts)


def test_a_cut_call_is_split_as_the_host_splits_it():
    for rows in (Rows(2, 2, 2, batched=False), Rows(3, 3, 3, same_length=False), Rows(1, 1)):
        parts = host_parts(rows, cut=True, host_skips=False)
        assert rows.unet_calls(with_uncond=False) == tuple(len(part) for part in parts)


# --- the prediction


def simulate(steps, loop: Loop, rows: Rows) -> Counts:
    """What the host and a cache that knows each row by its name would do."""
    names = [*(("cond", i) for i in range(rows.cond)), *(("uncond", i) for i in range(rows.uncond))]
    everything_cond = names[: rows.cond]
    cache: dict[tuple, tuple] = {}
    seen = dict.fromkeys(("calls", "full", "cached", "rows", "stock_rows"), 0)
    for call in loop.calls:
        seen["calls"] += 1
        seen["stock_rows"] += rows.cond if call.host_skips else rows.cond + rows.uncond
        cut = steps[call.step].drops_uncond and not call.host_skips
        for part, indices in enumerate(host_parts(rows, cut, call.host_skips)):
            wanted = [names[i] for i in indices]
            seen["rows"] += len(wanted)
            model, held = cache.get((call.place, part), (None, []))
            same = held == wanted or (wanted == everything_cond and held[: len(wanted)] == wanted)
            if ("deepcache" in steps[call.step]) and model == call.model and same:
                seen["cached"] += 1
            else:
                seen["full"] += 1
                cache[call.place, part] = (call.model, wanted)
    return Counts(**seen)


@given(st.data(), any_loop(), any_rows())
def test_the_prediction_is_what_a_simulation_counts(data, loop, rows):
    steps = data.draw(st.lists(step_plans, min_size=loop.n, max_size=loop.n))
    assert foretold(steps, loop, rows) == simulate(steps, loop, rows)


@given(
    any_loop(),
    any_rows(),
    intervals,
    fractions,
    fractions,
    st.sampled_from(["uniform", "nonuniform"]),
    fractions,
)
def test_a_plan_predicts_what_a_simulation_counts(loop, rows, interval, start, stop, mode, cutoff):
    deepcache = {"enabled": True, "cache_interval": interval, "start": start, "stop": stop, "mode": mode}
    plan = plan_for({"deepcache": deepcache, "cfg_cutoff": {"enabled": True, "stop": cutoff}}, loop, rows)
    assert len(plan.steps) == loop.n
    assert plan.prediction == simulate(plan.steps, loop, rows)
    for i, step in enumerate(plan.steps):
        assert step.drops_uncond == (i >= int(cutoff * loop.n))
        assert "deepcache" not in step or i in window(start, stop, loop.n)
    if mode == "uniform":
        assert [i for i in window(start, stop, loop.n) if "deepcache" not in plan.steps[i]] == list(
            window(start, stop, loop.n)
        )[::interval]


@given(any_loop(), any_rows())
def test_the_first_call_of_each_place_is_full(loop, rows):
    steps = [step_plan(cached=True)] * loop.n
    counts = foretold(steps, loop, rows)
    places = {call.place for call in loop.calls}
    assert counts.full >= len(places)
    assert counts.full + counts.cached >= len(loop.calls)


@given(st.integers(1, 50), intervals, fractions, any_rows())
def test_the_cutoff_costs_no_full_step(n, interval, cutoff, rows):
    """Where cond and uncond go through the UNet together, the cond rows of the store are kept."""
    loop, rows = Loop.of_steps([1] * n), replace(rows, same_length=True, batched=True)
    deepcache = {"deepcache": {"enabled": True, "cache_interval": interval}}
    without = plan_for(deepcache, loop, rows).prediction
    with_cutoff = plan_for({**deepcache, "cfg_cutoff": {"enabled": True, "stop": cutoff}}, loop, rows).prediction
    assert (with_cutoff.full, with_cutoff.cached) == (without.full, without.cached)
    assert with_cutoff.rows == without.rows - rows.uncond * (n - int(cutoff * n))
    assert with_cutoff.stock_rows == without.stock_rows


@given(st.integers(1, 50), intervals, fractions, any_rows())
def test_the_cutoff_adds_no_full_unet_call_however_rows_are_split(n, interval, cutoff, rows):
    rows = replace(rows, cond=rows.batch)  # AND prompts are refused by the host
    loop = Loop.of_steps([1] * n)
    deepcache = {"deepcache": {"enabled": True, "cache_interval": interval}}
    without = plan_for(deepcache, loop, rows).prediction
    with_cutoff = plan_for({**deepcache, "cfg_cutoff": {"enabled": True, "stop": cutoff}}, loop, rows).prediction
    assert with_cutoff.full <= without.full


def full_calls(loop: Loop) -> list[int]:
    """Which calls of a loop of nothing but cached steps are full after all."""
    steps = [step_plan(cached=True)] * loop.n
    found, before = [], 0
    for i in range(len(loop.calls)):
        full = foretold(steps, Loop(loop.calls[: i + 1]), Rows(1, 1)).full
        found += [i] * (full > before)
        before = full
    return found


def test_a_full_step_after_a_change_of_model():
    calls = [Call(i, 0, model=int(i >= 3)) for i in range(6)]
    assert full_calls(Loop(tuple(calls))) == [0, 3]


def test_a_full_step_where_uncond_rows_come_back_and_none_where_they_go():
    skips = [True, True, False, False, True, True, False]
    calls = [Call(i, 0, host_skips=skip) for i, skip in enumerate(skips)]
    assert full_calls(Loop(tuple(calls))) == [0, 2]


def test_each_place_of_a_step_has_a_store_of_its_own():
    assert full_calls(Loop.of_steps([2, 2, 2])) == [0, 1]
    assert full_calls(Loop.of_steps([1, 2, 3, 3])) == [0, 2, 5]


def test_the_article_numbers():
    """20 Euler steps, cutoff at a half: 30 rows where stock has 40."""
    plan = plan_for({"cfg_cutoff": {"enabled": True, "stop": 0.5}}, Loop.of_steps([1] * 20))
    assert plan.prediction == Counts(calls=20, full=20, cached=0, rows=30, stock_rows=40)
