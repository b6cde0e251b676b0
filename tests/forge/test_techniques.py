"""Each feature on Forge and reForge: at work, or refused by name."""

import numpy as np
import pytest
from webui.client import REQUEST, ApiError, same
from webui.live import ALL, CUTOFF, DEEPCACHE, FREEU, TINY, notes, reported

from .seen import Seen, agrees, planned, seen, watched

SMALL = {"width": 64, "height": 64, "steps": 6}
CASES = {
    # calls, rows, full, cached: 6 steps, guidance off from the 4th on, each third one full
    "freeu": (FREEU, Seen(6, 12, 6, 0)),
    "cutoff": (CUTOFF, Seen(6, 9, 6, 0)),
    "deepcache": (DEEPCACHE, Seen(6, 12, 2, 4)),
    "deepcache deeper": ({"deepcache": {"enabled": True, "cache_branch_id": 4}}, Seen(6, 12, 2, 4)),
    "all": (ALL, Seen(6, 9, 2, 4)),
    "all, cut right behind a full step": ({**ALL, "cfg_cutoff": {"enabled": True, "stop": 0.17}}, Seen(6, 7, 2, 4)),
}
REFUSED = {
    "Memory offload": {"memory": {"offload": "staged"}},
    "Memory weights": {"memory": {"weights": "fp8"}},
    "VAE precision": {"vae": {"precision": "bf16"}},
    "VAE tiling": {"vae": {"tiling": True, "tile_size": 256}},
    "attention sdpa": {"backend": {"attention": "sdpa"}},
    **{f"backend {name}": {"backend": {"name": name}}
       for name in ("cudagraph", "inductor", "onediff", "stable-fast", "tensorrt")},
}  # fmt: skip


@pytest.fixture(scope="module")
def stock(forge):
    """The stock picture, and what an extension could leave behind, before ours was ever switched on."""
    forge.client.txt2img(**SMALL)
    picture = forge.client.txt2img(**SMALL)[0]
    assert "SDXL Optim" not in picture.infotext
    assert picture.pixels.std() > 5  # not a flat one
    return picture, forge.client.get("/probe/state")


def test_nothing_went_wrong_at_start(forge, stock):
    log = forge.log()
    assert "*** Error" not in log, log[-4000:]
    assert "Traceback" not in log, log[-4000:]
    assert "sdxl optim" in forge.client.get("/sdapi/v1/scripts")["txt2img"]


@pytest.mark.parametrize("name", CASES)
def test_at_work(client, stock, name):
    settings, expected = CASES[name]
    picture, passes, answer = watched(client, settings, **SMALL)
    assert passes == [expected]
    agrees(picture, passes)
    assert planned(client, settings, **{**REQUEST, **SMALL}) == {"base": expected}
    assert "refused" not in notes(picture)
    assert not np.array_equal(picture.pixels, stock[0].pixels)
    assert answer["decodes"] == (0 if "vae" in settings else 1)
    marks = [call["marks"] for call in answer["calls"]]
    cut_from = int(6 * settings["cfg_cutoff"]["stop"]) if "cfg_cutoff" in settings else 6
    assert marks == [[1, 0]] * cut_from + [[0]] * (6 - cut_from)
    assert same(client.txt2img(**SMALL)[0], stock[0])
    assert client.get("/probe/state") == stock[1]


def test_freeu_acts_in_each_call(client, stock):
    picture, _, _ = watched(client, FREEU, **SMALL)
    assert reported(picture)[0]["freeu"] == "6"


def test_the_tiny_decoder(client, stock):
    picture, passes, answer = watched(client, TINY, **SMALL)
    assert "VAE Decoder: TAESD" in picture.infotext
    assert answer["decodes"] == 0
    assert passes == [Seen(6, 12, 6, 0)]
    assert not np.array_equal(picture.pixels, stock[0].pixels)
    assert same(client.txt2img(**SMALL)[0], stock[0])
    assert client.get("/probe/state") == stock[1]


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name(client, stock, name):
    picture, passes, _ = watched(client, REFUSED[name], **SMALL)
    assert f"{name} refused: " in notes(picture)
    answer = client.post("/sdxl-optim/plan", settings=REFUSED[name], request={**REQUEST, **SMALL})
    assert [note for note in answer["notes"] if note in notes(picture)] == answer["notes"] != []
    assert passes == [Seen(6, 12, 6, 0)]
    assert np.array_equal(picture.pixels, stock[0].pixels)
    assert client.get("/probe/state") == stock[1]


def test_a_wrong_value_is_told(client, stock):
    with pytest.raises(ApiError, match="cache_interval"):
        client.txt2img({"deepcache": {"enabled": True, "cache_interval": 0}}, **SMALL)
    assert same(client.txt2img(**SMALL)[0], stock[0])


# --- other requests


@pytest.mark.parametrize("sampler", ["Euler a", "DPM++ 2M", "Heun", "DDIM", "UniPC", "LCM"])
def test_samplers(client, stock, sampler):
    picture, passes, _ = watched(client, ALL, **SMALL, sampler_name=sampler)
    agrees(picture, passes)
    assert passes[0].cached > 0
    assert passes[0].rows < 2 * passes[0].calls
    assert planned(client, ALL, **{**REQUEST, **SMALL, "sampler_name": sampler}) == {"base": passes[0]}


def test_a_batch(client, stock):
    _, passes, _ = watched(client, ALL, **SMALL, batch_size=2, n_iter=2)
    assert passes == [Seen(6, 18, 2, 4)] * 2


def test_hires_fix(forge, client, stock):
    request = {**SMALL, "enable_hr": True, "hr_scale": 2, "hr_upscaler": "Latent", "denoising_strength": 0.7,
               "hr_second_pass_steps": 4, "hr_cfg": 5.0}  # fmt: skip
    if forge.host == "forge":
        request["hr_additional_modules"] = []  # Forge's own API fails without
    own = {**ALL, "hires": {"deepcache": {"enabled": True, "cache_interval": 2}}}
    picture, passes, _ = watched(client, own, **request)
    agrees(picture, passes)
    assert len(passes) == 2
    assert passes[1].cached == 2
    assert planned(client, own, **{**REQUEST, **request})["hires"] == passes[1]
    assert client.get("/probe/state") == stock[1]


def test_img2img(client, stock):
    client.post("/probe/watch")
    picture = client.img2img(stock[0].pixels, ALL, **SMALL, denoising_strength=0.7)[0]
    passes = seen(client.get("/probe/calls"))
    agrees(picture, passes)
    assert passes[0].cached > 0


def test_prompts_joined_by_and(client, stock):
    picture, passes, _ = watched(client, ALL, **SMALL, prompt="a red fox AND a blue bird :0.5")
    agrees(picture, passes)
    assert "CFG cutoff refused: prompts joined by AND" in notes(picture)
    assert passes == [Seen(6, 18, 2, 4)]


def test_guidance_of_1(client, stock):
    picture, passes, _ = watched(client, CUTOFF, **SMALL, cfg_scale=1.0)
    agrees(picture, passes)
    assert passes == [Seen(6, 6, 6, 0)]


def test_the_hosts_own_way_to_skip(client, stock):
    """NGMS leaves out uncond rows below a noise level."""
    client.options(s_min_uncond=4.0, s_min_uncond_all=True)
    try:
        picture, passes, _ = watched(client, {}, **SMALL)
        agrees(picture, passes)
        assert passes[0].rows < 12
    finally:
        client.options(s_min_uncond=0.0, s_min_uncond_all=False)


def test_a_failure_leaves_nothing(client, stock):
    client.post("/probe/watch")
    client.post("/probe/fault", after=3)
    with pytest.raises(ApiError):
        client.txt2img(ALL, **SMALL)
    client.post("/probe/off")
    assert same(client.txt2img(**SMALL)[0], stock[0])
    assert client.get("/probe/state") == stock[1]


def test_nothing_went_wrong_meanwhile(forge, stock):
    """The host catches and prints what goes wrong in a script's methods and callbacks."""
    errors = [line for line in forge.log().splitlines() if line.startswith("*** Error")]
    assert not [line for line in errors if "sdxl_optim" in line], forge.log()[-4000:]
