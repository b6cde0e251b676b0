"""The host's own refiner: another checkpoint takes over in the middle of the loop, from the fourth of six steps on."""

import numpy as np
import pytest
from webui.client import REQUEST, same
from webui.live import ALL, notes, reported

from .seen import Seen, agrees, planned, watched

PLAIN = {"width": 64, "height": 64, "steps": 6}
REFINED = {**PLAIN, "refiner_checkpoint": "full-sd15-b.safetensors", "refiner_switch_at": 0.5}
ANSWERED = ["full-sd15"] * 3 + ["full-sd15-b"] * 3
CASES = {
    "freeu": ({"freeu": {"enabled": True}}, Seen(6, 12, 6, 0)),
    "cutoff": ({"cfg_cutoff": {"enabled": True, "stop": 0.34}}, Seen(6, 8, 6, 0)),  # a call before the refiner's
    # Full: the first, the refiner's first, and by schedule the sixth. Nothing that the other UNet kept is used.
    "deepcache": ({"deepcache": {"enabled": True, "cache_interval": 5}}, Seen(6, 12, 3, 3)),
    "tiny": ({"vae": {"decoder": "tiny"}}, Seen(6, 12, 6, 0)),
    "all": (ALL, Seen(6, 9, 2, 4)),  # the fourth is full by schedule, too
}


@pytest.fixture(scope="module")
def stock(forge):
    """The pictures with and without a refiner, and what an extension could leave behind, before ours was on."""
    forge.client.txt2img(**PLAIN)
    refined = forge.client.txt2img(**REFINED)[0]
    plain = forge.client.txt2img(**PLAIN)[0]
    assert not np.array_equal(refined.pixels, plain.pixels)
    assert "Refiner: full-sd15-b" in refined.infotext
    return refined, plain, forge.client.get("/probe/state")


@pytest.mark.parametrize("name", CASES)
def test_goes_on_with_the_refiner(client, stock, name):
    settings, expected = CASES[name]
    refined, plain, state = stock
    picture, passes, answer = watched(client, settings, **REFINED)
    assert passes == [expected]
    agrees(picture, passes)
    assert [call["model"] for call in answer["calls"]] == ANSWERED
    assert answer["decodes"] == (0 if "vae" in settings else 1)
    assert "freeu" not in settings or int(reported(picture)[0]["freeu"]) == expected.full
    assert "Refiner switch at: 0.5" in picture.infotext
    assert "refused" not in notes(picture)
    assert not np.array_equal(picture.pixels, refined.pixels)
    # The refiner is loaded yet, and is no longer so when the next request begins.
    assert planned(client, settings, **{**REQUEST, **REFINED}) == {"base": expected}
    assert same(client.txt2img(**REFINED)[0], refined)
    assert same(client.txt2img(**PLAIN)[0], plain)
    assert client.get("/probe/state") == state


def test_over_two_batches(client, stock):
    _, passes, answer = watched(client, ALL, **REFINED, batch_size=2, n_iter=2)
    assert passes == [Seen(6, 18, 2, 4)] * 2
    assert [call["model"] for call in answer["calls"]] == ANSWERED * 2
    assert same(client.txt2img(**PLAIN)[0], stock[1])
    assert client.get("/probe/state") == stock[2]
