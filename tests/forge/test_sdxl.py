"""SDXL of full size in 2 steps at 256×256: each feature at work, or refused by name.

With the tiny decoder at 64×64: beside half-precision weights the host computes it in half precision too, in which a CPU
takes minutes for the larger picture.
"""

import numpy as np
import pytest
from webui.client import REQUEST
from webui.live import notes

from .seen import Seen, agrees, planned, watched
from .server import HOSTS, Forge

SMALL = {"width": 256, "height": 256, "steps": 2}
SMALLEST = {"width": 64, "height": 64, "steps": 2}
HALF = ("--unet-in-fp16", "--clip-in-fp16")  # as they are stored: 7 GB of weights
CUTOFF = {"cfg_cutoff": {"enabled": True, "stop": 0.5}}
DEEPCACHE = {"deepcache": {"enabled": True, "cache_interval": 2}}
FREEU = {"freeu": {"enabled": True}}
CASES = {
    "freeu": (FREEU, Seen(2, 4, 2, 0)),
    "cutoff": (CUTOFF, Seen(2, 3, 2, 0)),
    "deepcache": (DEEPCACHE, Seen(2, 4, 1, 1)),
    "tiny": ({"vae": {"decoder": "tiny"}}, Seen(2, 4, 2, 0)),
    "all": ({**FREEU, **CUTOFF, **DEEPCACHE, "vae": {"decoder": "tiny"}}, Seen(2, 3, 1, 1)),
}
REFUSED = {
    "memory": {"offload": "staged", "weights": "fp8"},
    "vae": {"precision": "bf16", "tiling": True},
    "backend": {"name": "cudagraph", "attention": "sdpa"},
}
NAMES = ("Memory offload", "Memory weights", "VAE precision", "VAE tiling", "backend cudagraph", "attention sdpa")


@pytest.fixture(scope="module", params=HOSTS)
def forge(request):
    with Forge(request.param, "full-sdxl", flags=HALF) as webui:
        yield webui


@pytest.fixture(scope="module")
def stock(forge):
    """Stock pictures by size, and what an extension could leave behind, before ours was ever switched on."""
    pictures = {size["width"]: forge.client.txt2img(**size)[0] for size in (SMALLEST, SMALL)}
    return pictures, forge.client.get("/probe/state")


@pytest.mark.parametrize("name", CASES)
def test_at_work(forge, stock, name):
    settings, expected = CASES[name]
    size = SMALLEST if "vae" in settings else SMALL
    picture, passes, answer = watched(forge.client, settings, **size)
    assert passes == [expected]
    agrees(picture, passes)
    assert planned(forge.client, settings, **{**REQUEST, **size}) == {"base": expected}
    assert "refused" not in notes(picture)
    assert not np.array_equal(picture.pixels, stock[0][size["width"]].pixels)
    assert answer["decodes"] == (0 if "vae" in settings else 1)


def test_refused_by_name_and_nothing_left(forge, stock):
    """Where all is refused, the picture is the stock one, also behind those that were not."""
    picture, passes, _ = watched(forge.client, REFUSED, **SMALL)
    assert passes == [Seen(2, 4, 2, 0)]
    assert np.array_equal(picture.pixels, stock[0][256].pixels)
    for name in NAMES:
        assert f"{name} refused: " in notes(picture)
    assert forge.client.get("/probe/state") == stock[1]
    assert not [line for line in forge.log().splitlines() if line.startswith("*** Error")]
