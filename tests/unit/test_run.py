"""A run on a small UNet: it changes what it should, counts what happened, and leaves nothing behind."""

from __future__ import annotations

from dataclasses import replace

import host_loop
import ldm_unet
import pytest
import torch
from host_loop import PAIR, DeepCacheCalls, plan_for, sample, step_plan, traces, watched
from lent import lent_unet

from sdxl_optim.errors import Unsupported
from sdxl_optim.planning.plan import Plan
from sdxl_optim.run import Run
from sdxl_optim.sampling.loop import Call, Counts, Loop, Rows, StepPlan
from sdxl_optim.sentences import happened
from sdxl_optim.settings import FreeU
from sdxl_optim.techniques.freeu.patch import freeu_attached
from sdxl_optim.unet.layout import read_layout

STEPS = Loop.of_steps([1] * 6)
FREEU = {"freeu": {"enabled": True}}
FREEU2 = {"freeu": {"enabled": True, "version": 2}}
DEEPCACHE = {"deepcache": {"enabled": True, "cache_interval": 2}}
DEEPER = {"deepcache": {"enabled": True, "cache_interval": 3, "cache_branch_id": 4}}
DEEPEST = {"deepcache": {"enabled": True, "cache_interval": 3, "cache_branch_id": 8}}
CUTOFF = {"cfg_cutoff": {"enabled": True, "stop": 0.5}}
TECHNIQUES = {
    "freeu": FREEU,
    "freeu2": FREEU2,
    "deepcache": DEEPCACHE,
    "deeper": DEEPER,
    "deepest": DEEPEST,
    "freeu+deeper": {**FREEU, **DEEPER},
    "all": {**FREEU2, **DEEPCACHE, **CUTOFF},
}
each_technique = pytest.mark.parametrize("settings", TECHNIQUES.values(), ids=TECHNIQUES)
FEW = ["freeu", "deeper", "all"]
few_techniques = pytest.mark.parametrize("settings", [TECHNIQUES[name] for name in FEW], ids=FEW)


@pytest.fixture
def unet():
    with lent_unet("sdxl") as unet:
        yield unet


def outputs(unet, settings: dict, loop: Loop = STEPS, rows: Rows = PAIR, **more) -> list[torch.Tensor]:
    with watched(unet) as seen, Run(plan_for(settings, loop, rows, unet)) as run:
        sample(unet, run, loop, rows, **more)
    return seen.outputs


def stock_outputs(unet, loop: Loop = STEPS, rows: Rows = PAIR, size=(8, 8)) -> list[torch.Tensor]:
    total = rows.cond + rows.uncond
    return [unet(*host_loop.call_inputs(unet, total, i, size).args) for i in range(len(loop.calls))]


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> list[bool]:
    return [torch.equal(x, y[: len(x)]) for x, y in zip(a, b, strict=True)]


# --- on: it changes the picture; off: nothing is left


@each_technique
def test_it_changes_what_it_should_and_leaves_nothing(unet, settings):
    stock = stock_outputs(unet)
    plan = plan_for(settings, STEPS, unet=unet)
    changed = [not equal for equal in same(outputs(unet, settings), stock)]
    # one row alone may differ from the same row of two in the last bit: cut steps are not compared
    for i, step in enumerate(plan.steps):
        if not step.drops_uncond:
            assert changed[i] == (("freeu" in step) or ("deepcache" in step))
    assert traces(unet) == []
    assert all(same(stock_outputs(unet), stock))


@pytest.mark.parametrize("settings", [{}, CUTOFF], ids=["nothing", "cutoff"])
def test_without_a_patch_to_open_the_blocks_are_not_touched(unet, settings):
    with Run(plan_for(settings, STEPS, unet=unet)) as run:
        run.attach(unet)
        assert traces(unet) == ["._forward_pre_hooks"]  # the one that counts
    assert all(same(outputs(unet, {}), stock_outputs(unet)))


@few_techniques
@pytest.mark.parametrize(("call", "error"), [(0, RuntimeError), (4, RuntimeError), (1, KeyboardInterrupt)])
def test_an_exception_inside_the_unet(unet, settings, call, error):
    stock = stock_outputs(unet)
    calls = []

    def fail(module, args, out):
        calls.append(1)
        if len(calls) == call + 1:
            raise error("out of memory")

    handle = unet.output_blocks[-1][0].register_forward_hook(fail)
    run = Run(plan_for(settings, STEPS, unet=unet))
    with pytest.raises(error, match="out of memory"), run:
        sample(unet, run, STEPS)
    handle.remove()
    assert run.report.finished is False
    assert run.report.as_predicted is None
    assert traces(unet) == []
    assert all(same(stock_outputs(unet), stock))


@few_techniques
def test_attached_twice_is_attached_once(unet, settings):
    once = outputs(unet, settings)
    with watched(unet) as seen, Run(plan_for(settings, STEPS, unet=unet)) as run:
        run.attach(unet)
        before = sorted(traces(unet))
        run.attach(unet)
        assert sorted(traces(unet)) == before
        sample(unet, run, STEPS)
    assert all(same(seen.outputs, once))
    assert run.report.as_predicted
    assert traces(unet) == []


def test_entered_twice_is_closed_at_the_first_exit(unet):
    with Run(plan_for(TECHNIQUES["all"], STEPS, unet=unet)) as run:
        with run:
            run.attach(unet)
        assert traces(unet) == []
    assert traces(unet) == []


@few_techniques
def test_a_second_run_is_like_the_first(unet, settings):
    assert all(same(outputs(unet, settings), outputs(unet, settings)))


# --- composition


def composed(unet, order: str, exit_order: str) -> list[torch.Tensor]:
    """FreeU and DeepCache entered and left by hand in the given orders; the second and third call are cached."""
    layout = read_layout(unet)
    calls = DeepCacheCalls(layout, 4, freeu=True)
    patches = {"f": freeu_attached(layout, FreeU(enabled=True), calls.current), "d": calls}
    for name in order:
        patches[name].__enter__()
    found = []
    for i in range(3):
        calls.begin(cached=i > 0)
        found.append(unet(*host_loop.call_inputs(unet, 2, i).args))
    for name in exit_order:
        patches[name].__exit__(None, None, None)
    return found


def written_out(unet, branch: int, steps: int) -> list[torch.Tensor]:
    """FreeU and DeepCache as a rewritten forward: the first call is full, the others are cached."""
    from sdxl_optim.techniques.freeu.tensors import scale_backbone, scale_low_frequencies

    kept, found = None, []
    settings = FreeU()
    factors = [(settings.b1, settings.s1), (settings.b2, settings.s2)]
    depth = len(unet.input_blocks)
    for i in range(steps):
        x, timesteps, context, y = host_loop.call_inputs(unet, 2, i).args
        emb = unet.embedding(timesteps, y)
        full = i == 0
        h, skips = x, []
        for block in unet.input_blocks if full else unet.input_blocks[: branch + 1]:
            h = block(h, emb, context)
            skips.append(h)
        h = unet.middle_block(h, emb, context) if full else kept
        for k in range(0 if full else depth - 1 - branch, depth):
            if k == depth - 1 - branch:
                kept = h
            skip = skips.pop()
            if k // 3 < 2:
                b, s = factors[k // 3]
                half = h.shape[1] // 2
                h = torch.cat([scale_backbone(h, b), h[:, half:]], 1)
                skip = scale_low_frequencies(skip, s)
            h = unet.output_blocks[k](torch.cat([h, skip], 1), emb, context)
        found.append(unet.out(h))
    return found


@pytest.mark.parametrize("order", ["fd", "df"])
@pytest.mark.parametrize("exit_order", ["fd", "df"])
def test_two_patches_in_either_order(unet, order, exit_order):
    stock = stock_outputs(unet)
    assert all(same(composed(unet, order, exit_order), written_out(unet, 4, 3)))
    assert traces(unet) == []
    assert all(same(stock_outputs(unet), stock))


@pytest.mark.parametrize("branch", range(9))
def test_freeu_and_deepcache_are_the_rewritten_forward(unet, branch):
    deepcache = {"enabled": True, "cache_interval": 6, "cache_branch_id": branch}
    assert all(same(outputs(unet, {**FREEU, "deepcache": deepcache}), written_out(unet, branch, 6)))


@pytest.mark.parametrize(("branch", "in_cached"), [(0, 0), (3, 1), (5, 3), (8, 6)])
def test_freeu_spends_nothing_on_blocks_that_keep_still(unet, monkeypatch, branch, in_cached):
    """It acts on the 6 output blocks of two resolutions; on cached steps on those that still run."""
    from sdxl_optim.techniques.freeu import patch as freeu

    worked = []
    whole = freeu.scale_low_frequencies
    monkeypatch.setattr(freeu, "scale_low_frequencies", lambda x, s: worked.append(1) or whole(x, s))
    deepcache = {"enabled": True, "cache_interval": 2, "cache_branch_id": branch}
    outputs(unet, {**FREEU, "deepcache": deepcache}, Loop.of_steps([1, 1]))
    assert len(worked) == 6 + in_cached


def test_the_cutoff_reuses_the_cond_rows(unet):
    """A cached step of the cond rows alone is the first half of that cached step with both."""
    long = {"deepcache": {"enabled": True, "cache_interval": 6}}
    cut = outputs(unet, {**long, **CUTOFF})
    whole = outputs(unet, long)
    assert [len(out) for out in cut] == [2, 2, 2, 1, 1, 1]
    for ours, expected in zip(cut, whole, strict=True):
        torch.testing.assert_close(ours, expected[: len(ours)], rtol=1e-4, atol=1e-5)


def test_somebody_elses_wrapper_over_ours_stays():
    """As a network extension does that wraps a block during the run and takes it off later."""
    unet = ldm_unet.tiny_unet("sdxl")
    stock = stock_outputs(unet)
    block = unet.output_blocks[2]
    with Run(plan_for(DEEPCACHE, STEPS, unet=unet)) as run:
        run.attach(unet)
        ours = block.forward
        block.forward = lambda *args, **kwargs: 2 * ours(*args, **kwargs)
    assert traces(unet) == ["output_blocks.2.forward"]
    assert not any(same(stock_outputs(unet), stock))
    block.forward = ours  # they put back what they found
    assert all(same(stock_outputs(unet), stock))


# --- other calls meanwhile


@each_technique
def test_extra_calls_between_ours_are_uncached_and_keep_freeu(unet, settings):
    """PAG and its like compare their own call with ours: FreeU must be in both."""
    stock = stock_outputs(unet)
    uncached = outputs(unet, {"freeu": settings["freeu"]} if "freeu" in settings else {})
    extra = []

    def somebody(index):
        extra.append(unet(*host_loop.call_inputs(unet, 2, index).args))

    expected = outputs(unet, settings)
    run = Run(plan_for(settings, STEPS, unet=unet))
    with watched(unet) as seen, run:
        sample(unet, run, STEPS, before_call=somebody)
        somebody(5)
    assert all(same(extra, [stock[0], *uncached[1:], uncached[5]]))  # before the first call of ours there is no step
    ours = seen.outputs[1:12:2]
    assert all(same(ours, expected))
    assert run.report.extra_calls == 7
    assert run.report.as_predicted


@few_techniques
def test_a_nested_run_disturbs_nothing(unet, settings):
    other = {"freeu": {"enabled": True, "b1": 1.1}, "deepcache": {"enabled": True, "cache_interval": 3}}
    alone, inner_alone = outputs(unet, settings), outputs(unet, other, size=(8, 16))
    run, inner_outputs = Run(plan_for(settings, STEPS, unet=unet)), []

    def generate(index):
        if index != 3:
            return
        run.suspend()
        try:
            inner_outputs.extend(outputs(unet, other, size=(8, 16)))
        finally:
            run.resume()

    with run, watched(unet) as seen:
        sample(unet, run, STEPS, before_call=generate)
    assert all(same(inner_outputs, inner_alone))
    assert all(same([*seen.outputs[:3], *seen.outputs[9:]], alone))
    assert run.report.as_predicted
    assert run.report.extra_calls == 6
    assert traces(unet) == []


def test_while_suspended_calls_are_stock_also_inside_a_step(unet):
    stock = stock_outputs(unet)
    with Run(plan_for(TECHNIQUES["all"], STEPS, unet=unet)) as run:
        run.attach(unet)
        run.begin_call(2, 2, 1)
        run.suspend()
        assert torch.equal(unet(*host_loop.call_inputs(unet, 2, 0).args), stock[0])
        run.resume()
        assert not torch.equal(unet(*host_loop.call_inputs(unet, 2, 0).args), stock[0])


def test_calls_before_the_first_of_ours_are_stock(unet):
    with Run(plan_for(FREEU, STEPS, unet=unet)) as run:
        run.attach(unet)
        out = unet(*host_loop.call_inputs(unet, 2, 0).args)
    assert torch.equal(out, stock_outputs(unet)[0])
    assert run.report.extra_calls == 1
    assert run.report.counts == Counts()


# --- who runs the block loop


def controlled_forward(unet, control, middle_control):
    """A forward as ControlNet's: it runs the blocks itself and adds residuals brought to the features' size."""

    def add(base, residual):
        if residual.shape[-2:] != base.shape[-2:]:
            residual = torch.nn.functional.interpolate(residual, size=base.shape[-2:], mode="nearest")
        return base + residual

    def forward(x, timesteps=None, context=None, y=None):
        emb = unet.embedding(timesteps, y)
        h, hs, controls = x, [], list(control)
        for module in unet.input_blocks:
            h = module(h, emb, context)
            hs.append(h)
        h = add(unet.middle_block(h, emb, context), middle_control)
        for module in unet.output_blocks:
            h = module(ldm_unet.cat([h, add(hs.pop(), controls.pop())], 1), emb, context)
        return unet.out(h)

    return forward


@pytest.mark.parametrize("settings", [DEEPCACHE, DEEPER, DEEPEST, {**FREEU2, **DEEPER, **CUTOFF}])
def test_a_loop_like_controlnets(unet, settings):
    layout = read_layout(unet)
    shapes = []
    for block in layout.blocks[: layout.depth + 1]:
        block.register_forward_hook(lambda m, a, out: shapes.append(tuple(out.shape[1:])))
    unet(*host_loop.call_inputs(unet, 1, 0).args)
    for block in layout.blocks:
        block._forward_hooks.clear()
    generator = torch.Generator().manual_seed(0)
    *control, middle = (0.1 * torch.randn(1, *shape, generator=generator) for shape in shapes)
    stock = stock_outputs(unet)
    unet.forward = controlled_forward(unet, control, middle)
    controlled = stock_outputs(unet)
    with watched(unet) as seen, Run(plan_for(settings, STEPS, unet=unet)) as run:
        sample(unet, run, STEPS)
    assert run.report.as_predicted
    assert (run.report.counts.full, run.report.counts.cached) == (seen.full, seen.cached)
    assert seen.cached > 0
    assert all(out.isfinite().all() for out in seen.outputs)
    for i, step in enumerate(run.plan.steps):
        if not (("deepcache" in step) or step.drops_uncond or ("freeu" in step)):
            assert torch.equal(seen.outputs[i], controlled[i])
    assert traces(unet) == [".forward"]
    del unet.forward
    assert all(same(stock_outputs(unet), stock))


def test_the_nearest_skip_still_takes_its_residual_on_cached_steps(unet):
    """Of ControlNet's residuals those of the skips that are computed act on cached steps, too."""
    layout = read_layout(unet)
    shape = host_loop.call_inputs(unet, 2, 0).x.shape[-2:]
    widths = [layout.channels[i] for i in range(layout.depth)]
    zero = [torch.zeros(1, width, 1, 1) for width in widths]
    strong = [torch.ones(1, widths[0], *shape), *zero[1:]]
    middle = torch.zeros(1, layout.channels[layout.depth], 1, 1)
    found = []
    for control in (zero, strong):
        unet.forward = controlled_forward(unet, control, middle)
        found.append(outputs(unet, DEEPCACHE))
        del unet.forward
    assert not any(same(*found))


REFERENCE_ONLY = "something ran the UNet's blocks twice in one call (reference-only does)"


@pytest.mark.parametrize("first_twice", [0, 1, 2, 3])
@pytest.mark.parametrize("settings", [DEEPCACHE, {**FREEU, **DEEPER}], ids=["deepcache", "freeu+deeper"])
def test_blocks_run_twice_in_one_call_end_the_caching(unet, settings, first_twice):
    """Reference-only runs the blocks once for its picture and once more for ours; it may begin at any step."""
    twice = {"on": False, "reference": []}
    stock_forward = unet.forward
    reference = host_loop.call_inputs(unet, 2, 99).args

    def forward(*args, **kwargs):
        if twice["on"]:
            twice["reference"].append(stock_forward(*reference))
        return stock_forward(*args, **kwargs)

    unet.forward = forward
    run = Run(plan_for(settings, STEPS, unet=unet))

    def before(index):
        twice["on"] = index >= first_twice

    with watched(unet) as seen, run:
        sample(unet, run, STEPS, before_call=before)
    del unet.forward
    freeu = {name: value for name, value in settings.items() if name == "freeu"}
    uncached = outputs(unet, freeu)
    assert all(same(seen.outputs[first_twice:], uncached[first_twice:]))
    assert [str(note) for note in run.report.notes if note.refused] == [f"DeepCache refused: {REFERENCE_ONLY}"]
    assert traces(unet) == []


# --- changes on the way


def test_another_size_is_a_full_step_and_no_crash(unet):
    plan = plan_for({"deepcache": {"enabled": True, "cache_interval": 6}}, STEPS, unet=unet)
    sizes = [(8, 8), (8, 8), (8, 16), (8, 16), (8, 8), (8, 8)]
    with watched(unet) as seen, Run(plan) as run:
        run.attach(unet)
        for i, size in enumerate(sizes):
            run.begin_call(2, 2, 1)
            inputs = host_loop.call_inputs(unet, 2, i, size)
            assert unet(*inputs.args).shape == inputs.x.shape
    assert (seen.full, seen.cached) == (run.report.counts.full, run.report.counts.cached) == (3, 3)
    assert run.report.as_predicted is False
    assert happened(run.report)[-1] == "not as planned"


def test_another_dtype_is_a_full_step():
    plan = plan_for({"deepcache": {"enabled": True, "cache_interval": 6}}, STEPS)
    found = []
    with DeepCacheCalls(read_layout(ldm_unet.tiny_unet("sdxl"))) as calls:
        for dtype in (torch.float32, torch.float32, torch.bfloat16, torch.bfloat16):
            found.append(calls.begin("deepcache" in plan.step(len(found)), shape=(8, 8, dtype)))
            exchange = calls.call.exchange
            if not found[-1]:
                exchange.leave(torch.zeros(2, 16, 8, 8, dtype=dtype))
            else:
                assert exchange.take().dtype == dtype
    assert found == [False, True, False, True]


def test_another_context_length_keeps_the_store(unet):
    """It changes where the uncond rows go, and the stored features do not depend on it in shape."""
    plan = plan_for({"deepcache": {"enabled": True, "cache_interval": 6}}, STEPS, unet=unet)
    with Run(plan) as run:
        run.attach(unet)
        for i, tokens in enumerate((5, 9)):
            run.begin_call(2, 2, 1)
            unet(*ldm_unet.random_inputs(unet.config, 2, (8, 8), tokens=tokens, seed=i).args)
    assert (run.report.counts.full, run.report.counts.cached) == (1, 1)


@pytest.mark.parametrize("settings", [DEEPCACHE, TECHNIQUES["all"], FREEU], ids=["deepcache", "all", "freeu"])
def test_the_refiner_takes_over(unet, settings):
    refiner = ldm_unet.tiny_unet("refiner", seed=5)
    calls = [Call(i, 0, model=int(i >= 4)) for i in range(6)]
    loop, stock = Loop(tuple(calls)), stock_outputs(unet)
    run = Run(plan_for(settings, loop, unet=unet))

    def before(index):
        if index >= 4:
            assert traces(unet) == []  # while the run goes on elsewhere

    with watched(refiner) as seen, run:
        sample(unet, run, loop, before_call=before, models={0: unet, 1: refiner})
    assert seen.full + seen.cached == 2
    assert seen.full == (2 if "deepcache" not in settings else 1)
    assert run.report.as_predicted
    assert traces(unet) == traces(refiner) == []
    assert all(same(stock_outputs(unet), stock))


def test_a_branch_that_the_refiner_lacks_is_said(unet):
    deep = ldm_unet.tiny_unet("refiner")
    loop = Loop(tuple(Call(i, 0, model=int(i >= 3)) for i in range(6)))
    plan = plan_for({"deepcache": {"enabled": True, "cache_branch_id": 10}}, loop, unet=deep)
    with Run(plan) as run:
        sample(deep, run, loop, models={0: deep, 1: unet})
    assert [str(n) for n in run.report.notes if n.refused] == [
        "DeepCache refused: branch 10 is deeper than the next model's UNet"
    ]
    assert run.report.counts.full == 4


def test_a_unet_of_another_layout_is_refused_and_runs(unet):
    class Foreign(torch.nn.Module):
        def forward(self, x, timesteps=None, context=None, y=None):
            return 2 * x

    foreign = Foreign()
    with Run(plan_for(TECHNIQUES["all"], STEPS, unet=unet)) as run:
        run.attach(foreign)
        for _ in STEPS.calls:
            run.begin_call(2, 2, 1)
            foreign(torch.ones(2, 4, 8, 8))
    assert {
        f"{name} refused: Foreign has no input, middle and output blocks" for name in ("FreeU", "DeepCache")
    } <= set(map(str, run.report.notes))
    assert run.report.counts.cached == 0
    assert traces(foreign) == []


def test_a_block_without_a_width_refuses_before_anything_is_patched():
    unet = ldm_unet.tiny_unet("sdxl")
    unet.middle_block = torch.nn.Sequential(torch.nn.SiLU())
    with pytest.raises(Unsupported):
        read_layout(unet)
    with Run(plan_for(TECHNIQUES["all"], STEPS, depth=9)) as run:
        run.attach(unet)
        assert [t for t in traces(unet) if not t.startswith("._")] == []
    assert traces(unet) == []


def test_more_calls_than_foreseen_run_uncached_and_are_said(unet):
    plan = plan_for({"deepcache": {"enabled": True, "cache_interval": 6}}, STEPS, unet=unet)
    with watched(unet) as seen, Run(plan) as run:
        sample(unet, run, STEPS)
        held = run.report.store_bytes, run.call.exchange.store.peak_bytes
        for i in range(4):
            run.begin_call(2, 2, 1)
            unet(*host_loop.call_inputs(unet, 2, i).args)
        assert (run.report.store_bytes, run.call.exchange.store.peak_bytes) == held
    assert (seen.full, seen.cached) == (1 + 4, 5)
    assert (run.report.counts.full, run.report.counts.cached) == (5, 5)
    assert run.report.as_predicted is False
    assert "schedule refused: the sampler made more calls than foreseen; these ran uncached" in map(
        str, run.report.notes
    )


def test_an_unforeseen_loop_runs_freeu_and_counts(unet):
    loop = Loop(foreseeable=False)
    with watched(unet) as seen, Run(plan_for(TECHNIQUES["all"], loop, unet=unet)) as run:
        run.attach(unet)
        for i in range(7):
            run.begin_call(2, 2, 1)
            unet(*host_loop.call_inputs(unet, 2, i).args)
    assert (seen.full, seen.cached, seen.rows) == (7, 0, 14)
    assert run.report.counts == Counts(7, 7, 0, 14, 14)
    assert not any(same(seen.outputs[:6], stock_outputs(unet)))
    assert run.report.as_predicted is None


def test_next_step_is_the_step_of_the_next_call(unet):
    steps = (StepPlan(), step_plan(cut=True), step_plan(freeu=True))
    loop = Loop.of_steps([1, 2, 1])
    run = Run(Plan(loop, PAIR, steps=steps, always=step_plan(cached=True)))
    found = []
    for _ in range(5):
        expected = run.next_step()
        assert run.begin_call(2, 2, 1) == expected
        found.append(expected)
    assert found == [steps[0], steps[1], steps[1], steps[2], step_plan(cached=True)]


def test_freeu_keeps_its_window(unet):
    settings = {"freeu": {"enabled": True, "start": 0.34, "stop": 0.84}}  # of 6 steps: 2, 3 and 4
    assert same(outputs(unet, settings), stock_outputs(unet)) == [True, True, False, False, False, True]


def test_keyword_arguments_reach_the_hooks(unet):
    inputs = host_loop.call_inputs(unet, 2, 0)
    with Run(plan_for(FREEU, STEPS, unet=unet)) as run:
        run.attach(unet)
        run.begin_call(2, 2, 1)
        named = unet(x=inputs.x, timesteps=inputs.timesteps, context=inputs.context, y=inputs.y)
    assert not torch.equal(named, unet(*inputs.args))
    assert run.report.counts.rows == 2


@pytest.mark.parametrize("name", ldm_unet.CONFIGS)
@pytest.mark.parametrize("size", [(9, 8), (7, 13), (16, 24)])
def test_every_family_and_odd_sizes(name, size):
    """Sizes that the levels do not divide are resized by the host's own concatenation."""
    unet = ldm_unet.tiny_unet(name)
    loop = Loop.of_steps([1, 2, 1])
    stock = stock_outputs(unet, loop, size=size)
    settings = {**FREEU, "deepcache": {"enabled": True, "cache_interval": 3, "cache_branch_id": 1}}
    found = outputs(unet, settings, loop, size=size)
    assert [out.shape for out in found] == [out.shape for out in stock]
    assert traces(unet) == []
    assert all(same(stock_outputs(unet, loop, size=size), stock))


@pytest.mark.parametrize("rows", [Rows(2, 2, 2), Rows(2, 2, 2, batched=False), Rows(2, 2, 2, same_length=False)])
def test_split_rows_give_the_same_picture_as_joint_ones(unet, rows):
    """Each part has a store of its own, so that splitting changes no row's result."""
    loop = Loop.of_steps([2, 2, 1])
    settings = {**FREEU, "deepcache": {"enabled": True, "cache_interval": 3}}
    joint = outputs(unet, settings, loop, Rows(2, 2, 2))
    split = outputs(unet, settings, loop, rows)
    torch.testing.assert_close(torch.cat(split), torch.cat(joint), rtol=1e-4, atol=1e-5)


def test_calls_of_one_step_do_not_share_a_store(unet):
    """Two calls a step, cached: each equals what it would be if the other had never run."""
    loop = Loop.of_steps([2, 2, 2])
    settings = {"deepcache": {"enabled": True, "cache_interval": 3}}
    both = outputs(unet, settings, loop)
    for place in (0, 1):
        alone = Loop(tuple(replace(c, place=0) for c in loop.calls if c.place == place))
        with watched(unet) as seen, Run(plan_for(settings, alone, unet=unet)) as run:
            run.attach(unet)
            for i in range(place, 6, 2):
                run.begin_call(2, 2, 1)
                unet(*host_loop.call_inputs(unet, 2, i).args)
        assert all(same(seen.outputs, both[place::2]))
