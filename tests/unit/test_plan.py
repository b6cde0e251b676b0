"""The plan: what runs, and each refusal in its words."""

from __future__ import annotations

import pytest
from host_loop import plan_for, step_plan

from sdxl_optim.sampling.loop import Counts, Loop, Rows, StepPlan
from sdxl_optim.sampling.note import Note
from sdxl_optim.settings import Settings

EULER = Loop.of_steps([1] * 20)
ADAPTIVE = Loop(foreseeable=False)
ALL = {"freeu": {"enabled": True}, "cfg_cutoff": {"enabled": True}, "deepcache": {"enabled": True}}


def notes(settings: dict, loop: Loop = EULER, **facts) -> list[str]:
    return [str(note) for note in plan_for(settings, loop, **facts).notes]


def test_every_technique_off_is_a_stock_run():
    plan = plan_for({}, EULER)
    assert (plan.config("freeu"), plan.config("deepcache"), plan.notes) == (None, None, ())
    assert set(plan.steps) == {StepPlan()}
    assert plan.prediction == Counts(calls=20, full=20, rows=40, stock_rows=40)


def test_all_together():
    plan = plan_for(ALL, EULER)
    assert plan.notes == ()
    assert [i for i, step in enumerate(plan.steps) if "deepcache" not in step] == [0, 3, 6, 9, 12, 15, 18]
    assert [i for i, step in enumerate(plan.steps) if step.drops_uncond] == [15, 16, 17, 18, 19]
    assert all("freeu" in step for step in plan.steps)
    assert plan.prediction == Counts(calls=20, full=7, cached=13, rows=35, stock_rows=40)


def test_windows_are_kept():
    plan = plan_for(
        {
            "freeu": {"enabled": True, "start": 0.25, "stop": 0.5},
            "deepcache": {"enabled": True, "cache_interval": 2, "start": 0.5, "stop": 0.9},
        },
        EULER,
    )
    assert [i for i, step in enumerate(plan.steps) if "freeu" in step] == [5, 6, 7, 8, 9]
    assert [i for i, step in enumerate(plan.steps) if "deepcache" in step] == [11, 13, 15, 17]


def test_the_steps_of_a_plan_are_the_samplers_and_not_its_calls():
    plan = plan_for({"deepcache": {"enabled": True, "cache_interval": 2}}, Loop.of_steps([2] * 15))
    assert len(plan.steps) == 15
    assert plan.prediction == Counts(calls=30, full=16, cached=14, rows=60, stock_rows=60)


def test_an_empty_loop():
    plan = plan_for(ALL, Loop())
    assert plan.steps == ()
    assert plan.prediction == Counts()
    assert plan.step(0) == StepPlan()


# --- refusals


def test_no_reach_into_the_unet_refuses_what_needs_it_and_nothing_else():
    reason = "the UNet is run by TensorRT"
    plan = plan_for(ALL, EULER, no_unet=reason)
    assert [str(note) for note in plan.notes] == [f"DeepCache refused: {reason}", f"FreeU refused: {reason}"]
    assert (plan.config("freeu"), plan.config("deepcache")) == (None, None)
    assert [step.drops_uncond for step in plan.steps] == [False] * 15 + [True] * 5
    assert not any(("freeu" in step) or ("deepcache" in step) for step in plan.steps)


def test_the_cutoff_is_refused_with_the_hosts_reason():
    plan = plan_for(ALL, EULER, no_cut="prompts joined by AND need the unconditional rows")
    assert [str(n) for n in plan.notes] == ["CFG cutoff refused: prompts joined by AND need the unconditional rows"]
    assert not any(step.drops_uncond for step in plan.steps)
    assert plan.config("deepcache") is not None


def test_freeu_needs_a_stage():
    assert notes(ALL, freeu_stages=0) == ["FreeU refused: this model's UNet has no stage that it acts on"]


def test_a_branch_deeper_than_the_unet_is_refused_with_what_is_allowed():
    settings = {"deepcache": {"enabled": True, "cache_branch_id": 9}}
    assert notes(settings, depth=9) == ["DeepCache refused: branch 9 is deeper than this model's UNet; allowed: 0 to 8"]
    assert notes({"deepcache": {"enabled": True, "cache_branch_id": 8}}, depth=9) == []


def test_what_cannot_be_foreseen_runs_uncached_and_uncut():
    plan = plan_for(ALL, ADAPTIVE)
    reason = "this sampler's number of steps can't be foreseen"
    assert [str(n) for n in plan.notes] == [f"DeepCache refused: {reason}", f"CFG cutoff refused: {reason}"]
    assert (plan.steps, plan.prediction) == ((), None)
    assert plan.step(0) == plan.step(89) == step_plan(cached=False, cut=False, freeu=True)


def test_a_freeu_window_cannot_be_kept_in_an_unforeseen_loop():
    for window in ({"start": 0.1}, {"stop": 0.9}):
        plan = plan_for({"freeu": {"enabled": True, **window}}, ADAPTIVE)
        assert [str(n) for n in plan.notes] == [
            "FreeU refused: this sampler's number of steps can't be foreseen, so a start/stop window can't be kept"
        ]
        assert plan.config("freeu") is None
        assert "freeu" not in plan.step(0)


@pytest.mark.parametrize("loop", [EULER, ADAPTIVE])
def test_at_cfg_scale_1_uncond_is_dropped_from_the_first_step(loop):
    plan = plan_for({"cfg_cutoff": {"enabled": True, "stop": 1.0}}, loop, cfg_scale=1)
    assert plan.step(0).drops_uncond
    assert plan.step(19).drops_uncond
    assert plan.notes == ()


@pytest.mark.parametrize("scale", [0.0, 0.5, 0.99])
def test_below_a_cfg_scale_of_1_the_cutoff_would_turn_the_picture_and_is_refused(scale):
    plan = plan_for({"cfg_cutoff": {"enabled": True}}, EULER, cfg_scale=scale)
    assert not any(step.drops_uncond for step in plan.steps)
    assert [str(note) for note in plan.notes] == [
        "CFG cutoff refused: below a CFG scale of 1 the picture is made of the unconditional rows as well"
    ]


def test_at_cfg_scale_1_the_refusals_hold_and_off_is_off():
    assert notes({"cfg_cutoff": {"enabled": True}}, cfg_scale=1, no_cut="why") == ["CFG cutoff refused: why"]
    assert not plan_for({}, EULER, cfg_scale=1).step(0).drops_uncond


def test_few_steps_are_a_note_and_no_refusal():
    for n, warned in ((11, True), (12, False)):
        plan = plan_for({"deepcache": {"enabled": True}}, Loop.of_steps([1] * n))
        assert plan.config("deepcache") is not None
        text = f"with {n} steps there is little to reuse and the picture changes much; use 12 or more"
        assert plan.notes == ((Note("DeepCache", text, refused=False),) if warned else ())
        assert all(str(note) == f"DeepCache note: {text}" for note in plan.notes)


def test_few_steps_are_those_of_the_window():
    (text,) = notes({"deepcache": {"enabled": True, "start": 0.5}})
    assert text.startswith("DeepCache note: with 10 steps")


def test_host_skips_are_left_to_the_host():
    from dataclasses import replace

    calls = tuple(replace(call, host_skips=call.step % 2 == 1) for call in EULER.calls)
    plan = plan_for({"cfg_cutoff": {"enabled": True, "stop": 0.5}}, Loop(calls), Rows(2, 2, 2))
    # stock: 10 calls of 4 rows, 10 of 2; the cutoff takes the uncond rows of 5 that the host would compute
    assert plan.prediction == Counts(calls=20, full=20, rows=50, stock_rows=60)


def test_settings_that_are_off_by_default_plan_nothing():
    from sdxl_optim.settings import to_dict

    assert plan_for(to_dict(Settings()), EULER).prediction == plan_for({}, EULER).prediction


@pytest.mark.parametrize("wanted", [{"cache_interval": 1}, {"start": 0.5, "stop": 0.5}, {"start": 0.5, "stop": 0.55}])
def test_deepcache_with_nothing_to_reuse_is_left_out_and_said(wanted):
    plan = plan_for({"deepcache": {"enabled": True, **wanted}}, EULER)
    assert plan.config("deepcache") is None
    assert str(plan.notes[-1]) == "DeepCache note: with these settings every step is full and nothing is reused"
    assert plan.prediction == plan_for({}, EULER).prediction
