"""The live plan's line."""

import pytest
from host_loop import facts_for

from sdxl_optim.planning.plan import make_plan, plan_request
from sdxl_optim.sampling.facts import RequestFacts
from sdxl_optim.sampling.loop import Loop, Rows
from sdxl_optim.sentences import plan_lines, planned
from sdxl_optim.settings import from_dict
from sdxl_optim.techniques.vae.rules import TINY


def plan(settings, calls=(1,) * 30, loop=None, **facts):
    facts = {"cfg_scale": 5.0, "depth": 9, "cached_share": 0.02, **facts}
    return make_plan(from_dict(settings), facts_for(loop or Loop.of_steps(calls), Rows(1, 1), **facts))


@pytest.mark.parametrize(
    ("given", "calls", "expected"),
    [
        ({}, (1,) * 30, "30 steps"),
        (
            {"preset": "fastest"},
            (1,) * 30,
            "30 steps; 10 full and 20 cached; guidance off after step 22; about 31 % of the work; cudagraph",
        ),
        ({"cfg_cutoff": {"enabled": True, "stop": 0}}, (1,) * 20, "20 steps; guidance off; about 50 % of the work"),
        ({"freeu": {"enabled": True, "stop": 0.5}}, (2,) * 19 + (1,), "20 steps in 39 calls; FreeU in 10 steps"),
        ({"freeu": {"enabled": True}}, (1,) * 20, "20 steps; FreeU"),
    ],
)
def test_what_will_run(given, calls, expected):
    assert "; ".join(map(str, planned(plan(given, calls)))) == expected


def test_a_share_that_is_not_known_is_not_named():
    assert "work" not in "; ".join(map(str, planned(plan({"preset": "fastest"}, cached_share=None))))


def test_a_sampler_that_chooses_its_steps():
    shown = planned(plan({"freeu": {"enabled": True}}, loop=Loop(foreseeable=False, at_least=18)))
    assert shown == ["at least 18 calls", "this sampler chooses its steps while it runs", "FreeU"]


def test_two_passes_and_what_there_is_to_say_once_each():
    few = {"deepcache": {"enabled": True}}
    passes = {"base": plan(few, (1,) * 8), "hires": plan(few, (1,) * 8)}
    facts = RequestFacts(said={TINY: "fetched"})
    request = plan_request(from_dict({"vae": {"decoder": "tiny"}}), facts)
    shown, said = (list(map(str, found)) for found in plan_lines(passes, request))
    assert [line.split(":")[0] for line in shown] == ["base", "hires"]
    assert "Tiny VAE" not in shown[0]
    assert shown[1].endswith("; Tiny VAE")
    assert len(said) == 2
    assert said[0].startswith("DeepCache note: with 8 steps")
    assert said[1] == "Tiny VAE note: fetched"
