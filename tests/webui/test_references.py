"""What a run is held against: a whole stock run of its size, and nothing that was cut short."""

import pytest

from .live import CUTOFF, HIRES, SMALLER

SAID = "the last stock run of this size took"
HEIGHTS = {"interrupt": 192, "skip": 256, "stop": 320}  # of no other test's two pictures


def told(webui, client, request: dict) -> bool:
    """Whether an optimised run says how long a stock run took."""
    before = len(webui.log())
    client.txt2img(CUTOFF, **request)
    return SAID in webui.log()[before:]


@pytest.mark.parametrize("kind", HEIGHTS)
def test_what_was_cut_short_is_not_compared(webui, client, kind):
    request = {**SMALLER, "height": HEIGHTS[kind], "n_iter": 2}
    client.fault("unet", kind, after=3)
    client.txt2img(**request)
    assert not told(webui, client, request)
    client.txt2img(**request)
    assert told(webui, client, request)
    client.fault("unet", kind, after=3)
    assert not told(webui, client, request)


def test_a_run_that_fails_is_not_compared(webui, client):
    request = {**SMALLER, **HIRES, "height": 448}
    client.txt2img(**request)
    assert told(webui, client, request)
    before = len(webui.log())
    client.fault("conds")
    with pytest.raises(Exception, match="probe fault"):
        client.txt2img(CUTOFF, **{**request, "prompt": "one that is not encoded yet"})
    assert SAID not in webui.log()[before:]
