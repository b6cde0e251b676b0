"""A run whose calls are replayed: the same pictures, counts and store as by eager calls, and eager ones where not."""

from __future__ import annotations

import random

import host_loop
import ldm_unet
import pytest
import torch
from graphs import Tape
from host_loop import PAIR, plan_for, sample, traces, watched

from sdxl_optim.backends.api import CannotPrepare, HostHooks
from sdxl_optim.backends.execution import Execution
from sdxl_optim.run import Run
from sdxl_optim.sampling.loop import Loop, Rows

STEPS = Loop.of_steps([1] * 6)
FREEU = {"freeu": {"enabled": True}}
DEEPCACHE = {"deepcache": {"enabled": True, "cache_interval": 2}}
DEEPER = {"deepcache": {"enabled": True, "cache_interval": 3, "cache_branch_id": 4}}
CUTOFF = {"cfg_cutoff": {"enabled": True, "stop": 0.5}}
SETTINGS = {
    "nothing": {},
    "freeu": FREEU,
    "freeu in a window": {"freeu": {"enabled": True, "version": 2, "start": 0.2, "stop": 0.7}},
    "deepcache": DEEPCACHE,
    "freeu+deeper": {**FREEU, **DEEPER},
    "all": {**FREEU, **DEEPCACHE, **CUTOFF},
}


@pytest.fixture
def unet():
    return ldm_unet.tiny_unet("sdxl")


@pytest.fixture
def tape():
    return Tape()


@pytest.fixture
def execution(tape):
    return Execution(tape)


def run(unet, settings, execution=None, loop=STEPS, rows=PAIR, **more):
    """(the UNet's outputs, the report)"""
    outputs = []
    handle = unet.register_forward_hook(lambda module, args, out: outputs.append(out.clone()))
    try:
        with Run(plan_for(settings, loop, rows, unet), execution=execution) as run:
            sample(unet, run, loop, rows, **more)
    finally:
        handle.remove()
    return outputs, run.report


@pytest.mark.parametrize("recorded", [False, True])
def test_a_tape_is_replayed_as_it_was_recorded(tape, recorded):
    """The host's autocast is on while a call is replayed, and may have been off while it was recorded."""
    x, weight = torch.randn(3, 8), torch.randn(8, 8)
    with torch.autocast("cpu", torch.bfloat16, enabled=recorded):
        expected = x @ weight
        call = tape.prepare(lambda tensors: [tensors[0] @ weight], [x], None)
    with torch.autocast("cpu", torch.bfloat16):
        [found] = call(None, [x])
    assert found.dtype == expected.dtype
    assert torch.equal(found, expected)


def same(a, b) -> bool:
    return len(a) == len(b) and all(map(torch.equal, a, b))


# --- the same as eager


@pytest.mark.parametrize(
    ("settings", "rows"),
    [
        *((settings, PAIR) for settings in SETTINGS.values()),
        (SETTINGS["all"], Rows(2, 2, batch=2)),
        (SETTINGS["all"], Rows(1, 1, same_length=False)),
        (SETTINGS["freeu+deeper"], Rows(1, 1, batched=False)),
    ],
)
def test_outputs_and_counts_are_those_of_eager_calls(unet, execution, tape, settings, rows):
    expected, eager = run(unet, settings, rows=rows)
    found, report = run(unet, settings, execution, rows=rows)
    assert same(found, expected)
    assert report.counts == eager.counts
    assert report.as_predicted
    assert report.acted["freeu"] == eager.acted["freeu"]
    assert report.store_bytes == eager.store_bytes
    assert report.notes == eager.notes
    assert report.execution.replays == len(expected) == tape.replays
    assert report.execution.fallbacks == 0
    assert traces(unet) == []


@pytest.mark.parametrize("loop", [Loop.of_steps([2] * 5 + [1]), Loop.of_steps([1, 3, 2, 1, 2])], ids=["heun", "mixed"])
def test_calls_of_several_places_share_a_recording_but_not_a_store(unet, execution, tape, loop):
    expected, _ = run(unet, {**DEEPER, **CUTOFF}, loop=loop)
    found, report = run(unet, {**DEEPER, **CUTOFF}, execution, loop=loop)
    assert same(found, expected)
    assert report.as_predicted
    assert tape.prepared == 4  # full and cached, with and without the uncond rows


def test_each_kind_of_call_is_recorded_once(unet, execution, tape):
    run(unet, SETTINGS["all"], execution)
    kinds = tape.prepared
    assert kinds == 4
    expected, _ = run(unet, SETTINGS["all"])
    found, report = run(unet, SETTINGS["all"], execution)
    assert same(found, expected)
    assert tape.prepared == kinds
    assert report.execution.prepared == 0
    run(unet, {**SETTINGS["all"], "freeu": {"enabled": True, "b1": 1.1}}, execution)
    assert tape.prepared == kinds + 2  # other factors; cached calls run none of FreeU's blocks


def test_python_inside_the_unet_does_not_run_in_a_replay(unet, execution):
    run(unet, DEEPCACHE, execution)
    ran = []
    handle = unet.middle_block[0].register_forward_hook(lambda *args: ran.append(1))
    inputs = host_loop.call_inputs(unet, 2, 0).args
    handle.remove()
    with Run(plan_for(DEEPCACHE, STEPS, unet=unet), execution=execution) as second:
        second.attach(unet)
        handle = unet.middle_block[0].register_forward_hook(lambda *args: ran.append(1))
        second.begin_call(2, 2, 1)
        unet(*inputs)
        handle.remove()
    assert not ran


def test_a_result_stays_what_it_is_when_the_next_call_is_replayed(unet, execution):
    with Run(plan_for({}, STEPS, unet=unet), execution=execution) as first:
        first.attach(unet)
        outputs = []
        for i in range(2):
            first.begin_call(2, 2, 1)
            outputs.append(unet(*host_loop.call_inputs(unet, 2, i).args))
    assert torch.equal(outputs[0], unet(*host_loop.call_inputs(unet, 2, 0).args))


@pytest.mark.parametrize("names", [("x", "timesteps", "context", "y"), ("context", "y", "x", "timesteps")])
def test_arguments_by_name(unet, execution, names):
    inputs = host_loop.call_inputs(unet, 2, 0)
    kwargs = {name: getattr(inputs, name) for name in names}
    with Run(plan_for({}, STEPS, unet=unet), execution=execution) as run:
        run.attach(unet)
        run.begin_call(2, 2, 1)
        found = unet(**kwargs)
    assert run.report.execution.replays == 1
    assert torch.equal(found, unet(**kwargs))


# --- what changes between calls


def test_random_alternations(unet, tape):
    rng = random.Random(0)
    execution = Execution(tape, most=6)
    for _ in range(12):
        settings = rng.choice(list(SETTINGS.values()))
        more = {"size": rng.choice([(8, 8), (8, 16), (16, 8)]), "rows": rng.choice([PAIR, Rows(2, 2, batch=2)])}
        if rng.random() < 0.3:
            with torch.no_grad():
                unet.middle_block[0].in_layers[2].weight.mul_(1.05)
        expected, eager = run(unet, settings, **more)
        found, report = run(unet, settings, execution, **more)
        assert same(found, expected), (settings, more)
        assert report.counts == eager.counts
        assert report.execution.fallbacks == 0
    assert len(execution) <= 6
    assert tape.prepared > 6  # some were dropped, and recorded anew


def test_weights_changed_in_place_are_not_recorded_anew(unet, execution, tape):
    run(unet, DEEPCACHE, execution)
    recorded = tape.prepared
    with torch.no_grad():
        for weight in unet.parameters():
            weight.mul_(1.01)
    expected, _ = run(unet, DEEPCACHE)
    assert same(run(unet, DEEPCACHE, execution)[0], expected)
    assert tape.prepared == recorded


def test_weights_that_moved_are_recorded_anew(unet, execution, tape):
    run(unet, DEEPCACHE, execution)
    recorded = tape.prepared
    unet.double().float()
    expected, _ = run(unet, DEEPCACHE)
    assert same(run(unet, DEEPCACHE, execution)[0], expected)
    assert tape.prepared == 2 * recorded


def test_one_moved_weight_is_noticed_when_the_host_says_that_something_changed(unet, tape):
    state = ["no lora"]
    execution = Execution(tape, HostHooks(fingerprint=lambda unet: state[0]))
    run(unet, {}, execution)
    layer = unet.middle_block[0].in_layers[2]
    layer.weight = torch.nn.Parameter(2 * layer.weight)
    state[0] = "a lora"
    expected, _ = run(unet, {})
    assert same(run(unet, {}, execution)[0], expected)


def test_another_model_has_recordings_of_its_own(unet, execution, tape):
    other = ldm_unet.tiny_unet("refiner")
    loop = Loop(tuple(host_call for host_call in STEPS.calls))
    for _ in range(2):
        for model in (unet, other):
            expected, _ = run(model, DEEPCACHE, loop=loop)
            assert same(run(model, DEEPCACHE, execution, loop=loop)[0], expected)
    assert tape.prepared == 4


def test_the_least_recently_used_is_dropped(unet, tape):
    execution = Execution(tape, most=2)
    for size in ((8, 8), (8, 16), (8, 8), (16, 16), (8, 8)):
        run(unet, {}, execution, size=size)
        assert len(execution) <= 2
    assert tape.prepared == 3
    run(unet, {}, execution, size=(8, 16))
    assert tape.prepared == 4


def test_weights_that_autocast_cast_are_not_kept_for_a_replay(unet, execution):
    """Autocast frees them at its end; a recording made of them would be of weights as they were."""
    unet.requires_grad_(True)
    for _ in range(2):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            expected, _ = run(unet, {})
            found, report = run(unet, {}, execution)
        assert same(found, expected)
        assert report.execution.fallbacks == 0
        with torch.no_grad():
            unet.middle_block[0].in_layers[2].weight.mul_(2)


# --- others


def test_calls_by_others_are_not_replayed(unet, execution, tape):
    with Run(plan_for({}, STEPS, unet=unet), execution=execution) as run:
        run.attach(unet)
        inputs = host_loop.call_inputs(unet, 2, 0).args
        unet(*inputs)  # before our first call
        run.begin_call(2, 2, 1)
        unet(*inputs)
        unet(*inputs)  # one that somebody adds to ours
        run.suspend()
        unet(*inputs)
        run.resume()
    assert run.report.execution.replays == tape.replays == 1
    assert run.report.extra_calls == 3


@pytest.mark.parametrize("where", ["hook", "forward", "whole forward"])
def test_python_of_others_inside_the_unet_runs_each_time(unet, execution, tape, where):
    ran = []

    def theirs(*args, **kwargs):
        ran.append(1)
        return original(*args, **kwargs)

    target = unet if where == "whole forward" else unet.middle_block[0]
    if where == "hook":
        handle = target.register_forward_hook(lambda *args: ran.append(1))
    else:
        original, target.forward = target.forward, theirs
    beforehand = execution.why_not(unet)
    _, report = run(unet, DEEPCACHE, execution)
    assert len(ran) == (6 if where == "whole forward" else 3)
    assert tape.prepared == 0
    [note] = [note for note in report.notes if note.feature == "backend cudagraph"]
    assert "test_execution" in note.text
    assert note.text == beforehand
    if where == "hook":
        handle.remove()
    else:
        del target.forward


def test_whether_a_unet_can_be_captured_is_known_before_a_run(unet, tape):
    assert Execution(tape).why_not(unet) is None

    def tiled(module):
        raise CannotPrepare("Hypertile draws its tiles anew in each call")

    layer = unet.middle_block[0]
    layer.forward = lambda *args: None
    assert "middle_block.0 is replaced by" in Execution(tape).why_not(unet)
    assert Execution(tape, HostHooks(is_idle_patch=lambda module: module is layer)).why_not(unet) is None
    assert "draws its tiles anew" in Execution(tape, HostHooks(is_idle_patch=tiled)).why_not(unet)
    tape.captures = False  # Python inside the UNet runs in each call
    assert Execution(tape).why_not(unet) is None
    unet.forward = lambda *args: None
    assert "the UNet's forward was replaced by" in Execution(tape).why_not(unet)


# --- what fails


@pytest.mark.parametrize("where", ["before", "after", "replay"])
@pytest.mark.parametrize(
    "error", [RuntimeError("no kernel"), torch.cuda.OutOfMemoryError("full")], ids=["error", "oom"]
)
def test_what_fails_runs_eagerly_and_is_said_once(unet, execution, tape, where, error):
    settings = SETTINGS["all"]
    expected, eager = run(unet, settings)
    tape.fail[where] = error
    found, report = run(unet, settings, execution)
    assert same(found, expected)
    assert report.counts == eager.counts
    assert report.as_predicted
    assert report.execution.fallbacks == len(expected)
    assert report.execution.replays == 0
    reasons = [note.text for note in report.notes if note.feature == "backend cudagraph"]
    assert len(reasons) == 1
    tape.fail.clear()
    assert run(unet, settings, execution)[1].execution.fallbacks == len(expected)  # remembered
    if isinstance(error, torch.cuda.OutOfMemoryError):
        assert tape.released


def test_a_replay_that_fails_midway_hands_over_to_eager_calls(unet, execution, tape):
    expected, _ = run(unet, SETTINGS["freeu+deeper"])
    run(unet, SETTINGS["freeu+deeper"], execution)
    calls = []

    def before(index):
        calls.append(index)
        if index == 3:
            tape.fail["replay"] = RuntimeError("the driver gave up")

    found, report = run(unet, SETTINGS["freeu+deeper"], execution, before_call=before)
    assert same(found, expected)
    assert report.execution.replays == 3
    assert report.execution.fallbacks == 3
    assert report.as_predicted


def test_a_wrong_result_is_noticed_when_a_call_is_prepared(unet, execution, tape):
    original = tape.prepare

    def wrong(body, inputs, progress):
        prepared = original(body, inputs, progress)
        return lambda body, inputs: [1.2 * output for output in prepared(body, inputs)]

    tape.prepare = wrong
    expected, _ = run(unet, {})
    found, report = run(unet, {}, execution)
    assert same(found, expected)
    assert "differs from the eager one by 20 %" in str(report.notes[0])


def test_what_the_host_refuses_runs_eagerly_and_is_named(unet, tape):
    def prepare(unet):
        raise CannotPrepare("Hypertile draws its tiles anew in each call")

    expected, _ = run(unet, DEEPCACHE)
    found, report = run(unet, DEEPCACHE, Execution(tape, HostHooks(prepare=prepare)))
    assert same(found, expected)
    assert str(report.notes[-1]) == (
        "backend cudagraph refused: Hypertile draws its tiles anew in each call; the calls ran eagerly"
    )


def test_reference_only_disables_the_cache_as_in_eager_calls(unet, execution, tape):
    """Blocks that run twice in a call make DeepCache give up; nothing that was recorded hides it."""
    original = unet.forward

    def twice(*args, **kwargs):
        original(*args, **kwargs)
        return original(*args, **kwargs)

    unet.forward = twice
    try:
        _, report = run(unet, DEEPCACHE, execution)
    finally:
        del unet.forward
    assert tape.prepared == 0
    assert report.counts.cached == 0


def test_watched_from_outside_the_first_pass_prepares_and_the_second_computes_nothing(unet, execution):
    run(unet, {**DEEPCACHE, **CUTOFF}, execution)
    with Run(plan_for({**DEEPCACHE, **CUTOFF}, STEPS, unet=unet), execution=execution) as second:
        second.attach(unet)
        with watched(unet) as seen:
            second_calls(unet, second)
    assert seen.touched == {}
    assert second.report.counts.full == 3
    assert second.report.counts.cached == 3
    assert second.report.counts.rows == 9


def second_calls(unet, run) -> None:
    for index in range(6):
        rows = 1 if run.next_step().drops_uncond else 2
        run.begin_call(rows, 2, 1)
        unet(*(t[:rows] for t in host_loop.call_inputs(unet, 2, index).args))
