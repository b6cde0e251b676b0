"""Captured calls inside the real WebUI, without CUDA: a tape of the calls' operations stands in for the graph, and
knows nothing of what Python would do in a later call. Each picture must be the eager one in every pixel."""

import re

import numpy as np
import pytest

from .conftest import running
from .live import ALL, CUTOFF, DEEPCACHE, FREEU, HIRES, SMALLER, comparable, difference, notes
from .server import EXTENSION, HERE, PROBE
from .test_techniques import mask, noise

TAPE = {"backend": {"name": "cudagraph"}}
LONG = "a red fox in the snow, " * 20  # over 75 tokens
LORA = "a red fox <lora:tiny-lora:{}>"
REQUESTS = {
    "plain": ({}, {}),
    "freeu": (FREEU, {}),
    "deepcache": (DEEPCACHE, {}),
    "cutoff": (CUTOFF, {}),
    "all": (ALL, {}),
    "freeu in a window": ({"freeu": {"enabled": True, "start": 0.3, "stop": 0.6}}, {}),
    "another size": (ALL, {"width": 128}),
    "batches": (ALL, {"batch_size": 2, "n_iter": 2}),
    "prompts of two lengths": (ALL, {"prompt": LONG, "negative_prompt": ""}),
    "two calls a step": (ALL, {"sampler_name": "Heun"}),
    "ddim": (ALL, {"sampler_name": "DDIM"}),
    "hires": (ALL, HIRES),
    "lora": (ALL, {"prompt": LORA.format(0.8)}),
    "the same lora, stronger": (ALL, {"prompt": LORA.format(1.5)}),
    "tiling": (ALL, {"tiling": True}),
    "refiner": (ALL, {"refiner_checkpoint": "tiny-sdxl-refiner.safetensors", "refiner_switch_at": 0.5}),
    "sd 1.5": (ALL, {"override_settings": {"sd_model_checkpoint": "tiny-sd15.safetensors"}}),
    "token merging": (ALL, {"override_settings": {"token_merging_ratio": 0.5}}),
    "uncond apart": (ALL, {"override_settings": {"batch_cond_uncond": False}}),
}


@pytest.fixture(scope="module")
def webui():
    yield from running(extensions=[EXTENSION, PROBE, HERE / "tape"])


@pytest.fixture
def client(webui):
    yield webui.client
    webui.client.post("/probe/off")


def replayed(picture) -> int:
    return sum(map(int, re.findall(r"(\d+) by cudagraph", picture.infotext)))


def same(client, settings, request, kind="txt2img"):
    """The captured picture, after checking it against the eager one and that every call was replayed."""
    request = {**SMALLER, **request}
    make = client.txt2img if kind == "txt2img" else lambda script, **r: client.img2img(noise(64, 64), script, **r)
    eager = make(settings, **request)
    for turn in ("captures", "replays"):
        pictures = make({**settings, **TAPE}, **request)
        for one, other in zip(pictures, eager, strict=True):
            assert np.array_equal(one.pixels, other.pixels), turn
            assert "eager instead" not in one.infotext, notes(one)
            assert replayed(one) >= request["steps"] // 2
            assert "not as planned" not in one.infotext
    return pictures[0]


@pytest.mark.parametrize("name", REQUESTS)
def test_the_captured_picture_is_the_eager_one(client, name):
    same(client, *REQUESTS[name])


def test_a_lora_comes_and_goes(client):
    pictures = [same(client, DEEPCACHE, {"prompt": p}) for p in ("a red fox", LORA.format(1), "a red fox")]
    assert not np.array_equal(pictures[0].pixels, pictures[1].pixels)
    assert np.array_equal(pictures[0].pixels, pictures[2].pixels)


def test_a_lora_changes_while_calls_are_captured(client):
    """Straight from one LoRA to the next, with no eager picture between to apply it."""
    prompts = [LORA.format(0.5), LORA.format(1.5), "a red fox", LORA.format(0.5)]
    eager = [client.txt2img({}, **SMALLER, prompt=p)[0].pixels for p in prompts]
    for prompt, expected in zip(prompts, eager, strict=True):
        assert np.array_equal(client.txt2img(TAPE, **SMALLER, prompt=prompt)[0].pixels, expected)


def test_checkpoints_change_in_place_and_otherwise(client):
    names = ["tiny-sdxl-b.safetensors", "tiny-sdxl-b.ckpt", "tiny-sdxl.safetensors", "tiny-sdxl-b.safetensors"]
    eager = []
    for name in names:
        client.options(sd_model_checkpoint=name)
        eager.append(client.txt2img(ALL, **SMALLER)[0].pixels)
    for name, expected in zip(names, eager, strict=True):
        client.options(sd_model_checkpoint=name)
        assert np.array_equal(client.txt2img({**ALL, **TAPE}, **SMALLER)[0].pixels, expected), name
    client.options(sd_model_checkpoint="tiny-sdxl.safetensors")


@pytest.mark.parametrize("more", [{}, {"mask": mask(64, 64)}], ids=["img2img", "inpainting"])
def test_img2img(client, more):
    client.post("/probe/seed")
    eager = client.img2img(noise(64, 64), ALL, **SMALLER, **more)[0]
    client.post("/probe/seed")
    picture = client.img2img(noise(64, 64), {**ALL, **TAPE}, **SMALLER, **more)[0]
    assert np.array_equal(picture.pixels, eager.pixels)
    assert replayed(picture)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"hypertile_enable_unet": True}, "Hypertile draws its tiles anew in each call"),
        ({"lora_functional": True}, "the setting lora_functional applies LoRAs in each call"),
    ],
    ids=["hypertile", "lora_functional"],
)
def test_what_runs_python_in_each_call_is_refused_by_name(client, options, said):
    before = {name: client.options()[name] for name in options}
    client.options(**options)
    try:
        request = {**SMALLER, "prompt": LORA.format(1)}
        eager = client.txt2img(ALL, **request)[0]
        picture = client.txt2img({**ALL, **TAPE}, **request)[0]
    finally:
        client.options(**before)
    assert said in notes(picture)
    assert replayed(picture) == 0
    assert np.array_equal(picture.pixels, eager.pixels)
    same(client, ALL, {})  # what they leave behind when they are off is no obstacle


def test_hooks_of_another_extension_are_named(client):
    client.watch()
    picture = client.txt2img({**ALL, **TAPE}, **SMALLER)[0]
    assert re.search(r"backend cudagraph refused: every module is hooked by .*probe", notes(picture))
    assert replayed(picture) == 0
    assert len(client.calls()) == SMALLER["steps"]


def test_an_interrupted_generation_leaves_the_next_one_whole(client):
    expected = client.txt2img(ALL, **SMALLER)[0]
    client.txt2img({**ALL, **TAPE}, **SMALLER)
    client.fault("cfg_denoiser", "interrupt", after=3)
    client.txt2img({**ALL, **TAPE}, **SMALLER)
    client.post("/probe/off")
    assert np.array_equal(client.txt2img({**ALL, **TAPE}, **SMALLER)[0].pixels, expected.pixels)


def test_nothing_is_left(client):
    stock = client.txt2img(**SMALLER)[0]
    before = comparable(client.state())
    client.txt2img({**ALL, **TAPE}, **SMALLER)
    again = client.txt2img(**SMALLER)[0]
    assert np.array_equal(stock.pixels, again.pixels)
    assert again.infotext == stock.infotext
    after = comparable(client.state())
    assert after == before, difference(before, after)
