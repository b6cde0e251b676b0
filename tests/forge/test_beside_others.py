"""Beside the host's own extensions that work in the same places, and with all of its samplers."""

import numpy as np
import pytest
from webui.live import ALL, CUTOFF, DEEPCACHE, FREEU, notes

from .seen import Seen, agrees, watched

SMALL = {"width": 64, "height": 64, "steps": 6}
LARGER = {"width": 128, "height": 128, "steps": 6}  # the hosts' own can do nothing with one point in the middle block


@pytest.fixture(scope="module")
def stock(forge):
    forge.client.txt2img(**SMALL)
    return forge.client.txt2img(**SMALL)[0], forge.client.get("/probe/state")


@pytest.fixture(autouse=True)
def unchanged(client, stock):
    yield
    assert np.array_equal(client.txt2img(**SMALL)[0].pixels, stock[0].pixels)
    assert client.get("/probe/state") == stock[1]


def built_in(client, title: str) -> dict:
    """A script of the host's own, switched on, and else as it is when the page is opened."""
    info = client.get("/sdapi/v1/script-info")
    script = next(s for s in info if s["name"].startswith(title.lower()) and not s["is_img2img"])
    return {script["name"]: {"args": [True, *(arg["value"] for arg in script["args"][1:])]}}


def test_between_the_blocks(client):
    """The host's own FreeU changes the features there: what is kept would go through it twice."""
    host_freeu = built_in(client, "FreeU Integrated")
    alone = client.txt2img(**LARGER, alwayson_scripts=host_freeu)[0]
    assert not np.array_equal(alone.pixels, client.txt2img(**LARGER)[0].pixels)
    assert alone.pixels.std() > 5
    picture, passes, _ = watched(client, {**DEEPCACHE, **CUTOFF}, **LARGER, alwayson_scripts=host_freeu)
    assert "DeepCache refused: another extension changes the features between the UNet's blocks" in notes(picture)
    agrees(picture, passes)
    assert passes == [Seen(6, 9, 6, 0)]
    both, _, _ = watched(client, FREEU, **LARGER, alwayson_scripts=host_freeu)
    assert not np.array_equal(both.pixels, alone.pixels)


def test_in_the_guidance(client):
    """Self-attention guidance works with the unconditional prediction, and calls the UNet once more a step."""
    guided = built_in(client, "SelfAttentionGuidance Integrated")
    picture, passes, _ = watched(client, {**DEEPCACHE, **CUTOFF}, **LARGER, alwayson_scripts=guided)
    assert "CFG cutoff refused: another extension works on the guidance" in notes(picture)
    assert "6 calls, 12 of 12 rows, 2 full and 4 cached" in picture.infotext
    assert "not as planned" not in picture.infotext
    assert f"{passes[0].calls - 6} calls by others uncached" in picture.infotext


def test_every_sampler_has_a_plan(client):
    """Or is told to be one whose number of steps can't be foreseen."""
    unforeseen = []
    for sampler in client.get("/sdapi/v1/samplers"):
        request = {**SMALL, "prompt": "a", "cfg_scale": 5.0, "sampler_name": sampler["name"], "scheduler": "Automatic"}
        answer = client.post("/sdxl-optim/plan", settings={**CUTOFF, **DEEPCACHE}, request=request)
        told = " ".join(answer["notes"])
        if "at_least" in answer["passes"]["base"]:
            assert "can't be foreseen" in told
            unforeseen.append(sampler["name"])
        else:
            assert answer["passes"]["base"]["cached"] > 0, sampler
            assert ("CFG++" in sampler["name"]) == ("(CFG++) works with the unconditional prediction" in told), sampler
    assert "DPM adaptive" in unforeseen
    assert len(unforeseen) <= 12, unforeseen  # of reForge's 76: the adaptive, and those that shrink the picture


def test_parameters_sent_by_the_api(forge, client):
    if forge.host == "forge":
        pytest.skip("Forge's own API fails on the field `infotext`, with this extension or without")
    first = client.txt2img(ALL, **SMALL)[0]
    again = client.generate("txt2img", None, {"infotext": first.infotext})[0]
    assert "2 full and 4 cached" in again.infotext
    assert np.array_equal(first.pixels, again.pixels)
