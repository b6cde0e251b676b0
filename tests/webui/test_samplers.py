"""Every sampler and schedule of the host's own lists: the plan foresees each loop to the last call."""

import pytest

from .live import ALL, CUTOFF, SMALLER, Case, notes
from .test_techniques import noise

SAMPLERS = (
    "DPM++ 2M", "DPM++ SDE", "DPM++ 2M SDE", "DPM++ 2M SDE Heun", "DPM++ 2S a", "DPM++ 3M SDE", "Euler a", "Euler",
    "LMS", "Heun", "DPM2", "DPM2 a", "DPM fast", "DPM adaptive", "Restart", "DDIM", "DDIM CFG++", "PLMS", "UniPC",
    "LCM",
)  # fmt: skip
SCHEDULERS = (
    "Automatic", "Uniform", "Karras", "Exponential", "Polyexponential", "SGM Uniform", "KL Optimal", "Align Your Steps",
    "Simple", "Normal", "DDIM", "Beta",
)  # fmt: skip
UNFORESEEABLE = "DPM adaptive"
NEEDS_UNCOND = "DDIM CFG++"


def test_these_are_all_that_the_host_has(case):
    assert sorted(SAMPLERS) == sorted(sampler["name"] for sampler in case.get("/sdapi/v1/samplers"))
    assert sorted(SCHEDULERS) == sorted(scheduler["label"] for scheduler in case.get("/sdapi/v1/schedulers"))


def runs_as_planned(case: Case, name: str, picture) -> None:
    [counts] = case.passes
    refused = notes(picture)
    if name == UNFORESEEABLE:
        assert "CFG cutoff refused: this sampler's number of steps can't be foreseen" in refused
        assert "DeepCache refused: this sampler's number of steps can't be foreseen" in refused
        assert not counts.cached
    elif name == NEEDS_UNCOND:
        assert "CFG cutoff refused: this sampler (CFG++) works with the unconditional prediction" in refused
        assert counts.cached
    else:
        assert "refused" not in refused
        assert counts.cached
    whole = name in (UNFORESEEABLE, NEEDS_UNCOND)
    assert counts.rows == 2 * counts.calls if whole else counts.calls < counts.rows < 2 * counts.calls


@pytest.mark.parametrize("name", SAMPLERS)
def test_txt2img(case, name):
    runs_as_planned(case, name, case.txt2img(ALL, **SMALLER, sampler_name=name)[0])


@pytest.mark.parametrize("name", SAMPLERS)
def test_img2img(case, name):
    request = {**SMALLER, "steps": 16, "sampler_name": name, "denoising_strength": 0.5}
    runs_as_planned(case, name, case.img2img(noise(64, 64), ALL, **request)[0])


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_scheduler(case, scheduler):
    for sampler in ("Euler", "DPM2 a"):
        case.txt2img(ALL, **SMALLER, sampler_name=sampler, scheduler=scheduler)
        assert case.passes[0].cached


@pytest.mark.parametrize("sampler", ["Heun", "DPM++ SDE", "Restart", "UniPC"])
def test_the_pass_of_hires_fix(case, sampler):
    request = {"enable_hr": True, "hr_scale": 1.25, "hr_upscaler": "Latent", "hr_sampler_name": sampler}
    case.txt2img(ALL, **{**SMALLER, "steps": 8}, **request, denoising_strength=0.7)
    assert all(counts.cached for counts in case.passes)


@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize("sampler", ["Euler", "DPM++ 2S a", "DDIM", "LCM"])
def test_few_steps(case, sampler, steps):
    picture = case.txt2img(ALL, **{**SMALLER, "steps": steps}, sampler_name=sampler)[0]
    if case.passes[0].calls:  # DDIM makes none of its only step
        assert "use 12 or more" in notes(picture)


@pytest.mark.parametrize("sampler", ["DPM adaptive", "DPM fast"])
def test_cfg_scale_1_needs_no_foresight(case, sampler):
    case.txt2img(CUTOFF, **SMALLER, sampler_name=sampler, cfg_scale=1.0)
    [counts] = case.passes
    assert counts.rows == counts.calls
