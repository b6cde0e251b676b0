"""The cutoff and DeepCache among everything else that decides which rows are computed."""

import numpy as np
import pytest

from .live import ALL, CUTOFF, DEEPCACHE, SMALLER, Pass, notes

LONG = "a red fox in the snow, " * 20  # over 75 tokens
PADDING = {"unpadded": {}, "padded": {"pad_cond_uncond": True}, "padded v0": {"pad_cond_uncond_v0": True}}


@pytest.mark.parametrize("padding", PADDING)
@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("prompt", [LONG, "fox"])
def test_prompts_of_unequal_length(case, padding, batched, prompt):
    case.options(**PADDING[padding], batch_cond_uncond=batched)
    for batch_size in (1, 3):
        negative = LONG if prompt == "fox" else ""
        case.txt2img(ALL, **SMALLER, prompt=prompt, negative_prompt=negative, batch_size=batch_size)
        assert case.passes[0].rows == 18 * batch_size


@pytest.mark.parametrize("script", [CUTOFF, DEEPCACHE, ALL])
def test_cond_and_uncond_in_calls_of_their_own(case, script):
    case.options(batch_cond_uncond=False)
    case.txt2img(script, **SMALLER, batch_size=2)


def test_cfg_scale_1_drops_uncond_from_the_first_step(case):
    stock = case.txt2img(**SMALLER, cfg_scale=1.0)[0]
    picture = case.txt2img({"cfg_cutoff": {"enabled": True, "stop": 1.0}}, **SMALLER, cfg_scale=1.0)[0]
    assert case.passes == [Pass(calls=12, rows=12, full=12, cached=0)]
    assert np.abs(picture.pixels.astype(int) - stock.pixels).max() <= 1  # other sums of the same, in fp32


def test_cfg_scale_1_keeps_uncond_without_the_cutoff(case):
    case.txt2img(DEEPCACHE, **SMALLER, cfg_scale=1.0)
    assert case.passes[0].rows == 24


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("every_step", [False, True])
@pytest.mark.parametrize("prompt", ["a red fox in the snow", LONG])
def test_ngms(case, batched, every_step, prompt):
    case.options(s_min_uncond=3.0, s_min_uncond_all=every_step, batch_cond_uncond=batched)
    for script in (ALL, {"cfg_cutoff": {"enabled": True, "stop": 0.9}}):
        picture = case.txt2img(script, **SMALLER, prompt=prompt)[0]
        assert "NGMS: 3" in picture.infotext


@pytest.mark.parametrize("share", [0.2, 0.6, 1.0])
@pytest.mark.parametrize("sampler", ["Euler", "Heun", "DDIM"])
def test_skip_early_cfg(case, share, sampler):
    case.options(skip_early_cond=share)
    picture = case.txt2img(ALL, **SMALLER, sampler_name=sampler)[0]
    assert "Skip Early CFG" in picture.infotext


def test_skip_early_cfg_and_ngms_and_the_cutoff(case):
    case.options(skip_early_cond=0.2, s_min_uncond=1.0, s_min_uncond_all=True)
    case.txt2img({**ALL, "cfg_cutoff": {"enabled": True, "stop": 0.8}}, **SMALLER, batch_size=2)


@pytest.mark.parametrize("prompt", ["a fox AND a field", "a fox :1.2 AND snow :0.5 AND night", LONG + " AND night"])
def test_and_prompts_keep_their_uncond_rows(case, prompt):
    picture = case.txt2img(ALL, **SMALLER, prompt=prompt)[0]
    assert "CFG cutoff refused: prompts joined by AND need the unconditional rows" in notes(picture)
    assert case.passes[0].cached
    assert case.reports[0]["rows"] == case.reports[0]["stock_rows"]


def test_and_prompts_in_batches(case):
    case.options(batch_cond_uncond=False)
    case.txt2img(ALL, **SMALLER, prompt="a fox AND snow AND night", batch_size=2)
    case.options(batch_cond_uncond=True)
    case.txt2img(ALL, **SMALLER, prompt="a fox AND snow AND night", negative_prompt=LONG, batch_size=2)


@pytest.mark.parametrize("prompt", ["a [fox:bird:0.5]", "a [fox|bird]", f"a fox [:{LONG}:0.5]", f"[{LONG}::0.3]"])
@pytest.mark.parametrize("padded", [False, True])
def test_prompt_editing(case, prompt, padded):
    case.options(pad_cond_uncond=padded)
    case.txt2img(ALL, **SMALLER, prompt=prompt)


def test_instruct_pix2pix_keeps_its_rows(case):
    from .test_techniques import noise

    case.options(sd_model_checkpoint="tiny-sd15-edit.safetensors")
    for image_cfg_scale in (1.5, 1.0):
        picture = case.img2img(noise(64, 64), ALL, **SMALLER, image_cfg_scale=image_cfg_scale)[0]
        assert "CFG cutoff refused: instruct-pix2pix models need the unconditional rows" in notes(picture)
        assert case.passes[0].cached


@pytest.mark.parametrize("rate", [0.05, 0.7])
def test_churned_noise_levels(case, rate):
    """Some samplers raise the noise level within a step by a setting of the user's."""
    case.txt2img(ALL, **SMALLER, s_churn=rate * 10, s_noise=1.01)
    case.txt2img(ALL, **SMALLER, sampler_name="Heun", s_churn=rate * 10)
