"""Together with the real sd-webui-controlnet, which runs the UNet's blocks by a loop of its own.

`SD_WEBUI_CONTROLNET_DIR` names that extension's folder, `SD_WEBUI_CONTROLNET_PACKAGES` a folder with the packages that
it asks for (`pip install --target`), where the WebUI's own environment lacks them. SD 1.5 at its full size with random
weights, 128×128 pixels.
"""

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from . import checkpoints_controlnet, server
from .client import REQUEST, encoded
from .conftest import running
from .live import ALL, SMALL, Case, Pass, Stock, notes
from .test_techniques import noise

ON_CPU = server.device() == "cpu"
ROUNDING = 0 if ON_CPU else 1  # levels of a pixel: a graph's calls leave out autocast's casts


@pytest.fixture(scope="module")
def controlnet_webui():
    folder = os.environ.get("SD_WEBUI_CONTROLNET_DIR")
    if server.webui_dir() is None or not folder:
        pytest.skip("SD_WEBUI_CONTROLNET_DIR is not set")
    packages = os.environ.get("SD_WEBUI_CONTROLNET_PACKAGES", "")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", packages)
        script = server.HERE / "checkpoints_controlnet.py"
        command = [server.webui_python(), script, server.webui_dir(), server.make_checkpoints(), folder]
        subprocess.run(command, env=server.offline(), check=True, capture_output=True)
        checkpoint = f"{checkpoints_controlnet.CHECKPOINT}.safetensors"
        settings = {"sd_model_checkpoint": checkpoint, "control_net_no_detectmap": True}
        stand_in = [server.HERE / "tape"] if ON_CPU else []
        extensions = [server.EXTENSION, server.PROBE, *stand_in, Path(folder)]
        yield from running(extensions=extensions, settings=settings)


@pytest.fixture(scope="module")
def unit(controlnet_webui):
    """ControlNet's own part of a request."""
    [model] = controlnet_webui.client.get("/controlnet/model_list")["model_list"]
    return {"enabled": True, "image": encoded(noise()), "module": "none", "model": model, "weight": 1.0}


@pytest.fixture(scope="module")
def stock_pictures(controlnet_webui, unit):
    """From the same server, before the extension was ever switched on."""
    stock = Stock(controlnet_webui.client)
    stock("txt2img", request(unit), {})
    return stock


def request(unit, **more) -> dict:
    return {**REQUEST, **SMALL, "alwayson_scripts": {"controlnet": {"args": [unit]}}, **more}


@pytest.fixture
def case(controlnet_webui, stock_pictures):
    case = Case(controlnet_webui.url, stock_pictures, controlnet_webui.client.state())
    yield case
    case.finish()


@pytest.mark.timeout(900)
def test_controlnet_is_at_work(case, unit):
    [plain], [plain_pass] = case.stock("txt2img", {**REQUEST, **SMALL}, {})
    [stock], [stock_pass] = case.stock("txt2img", request(unit), {})
    assert "ControlNet 0" in stock.infotext
    assert "ControlNet" not in plain.infotext
    assert stock_pass == plain_pass
    assert not np.array_equal(stock.pixels, plain.pixels)


@pytest.mark.timeout(900)
def test_all_together_under_controlnet(case, unit):
    [stock], [stock_pass] = case.stock("txt2img", request(unit), {})
    assert stock_pass == Pass(calls=12, rows=24, full=12, cached=0)
    [picture] = case.generate("txt2img", ALL, request(unit))
    assert case.passes == [Pass(calls=12, rows=18, full=4, cached=8)]
    assert case.reports[0]["freeu"] == "4"
    assert "ControlNet 0" in picture.infotext
    assert not np.array_equal(picture.pixels, stock.pixels)


@pytest.mark.timeout(900)
def test_controlnet_still_matters_on_cached_steps(case, unit):
    case.counts = False
    script = {"deepcache": {"enabled": True, "cache_interval": 10}}
    strong, weak = (
        case.generate("txt2img", script, request({**unit, "weight": weight, "guidance_start": 0.5}, steps=4))[0]
        for weight in (1.0, 0.1)
    )
    assert not np.array_equal(strong.pixels, weak.pixels)


@pytest.mark.timeout(900)
def test_captured_calls_give_way_to_controlnet_and_come_back(case, unit):
    """On a CPU by the tests' tape in place of a CUDA graph."""
    case.counts = False
    captured = {**ALL, "backend": {"name": "cudagraph"}}
    [eager] = case.generate("txt2img", ALL, request(unit))
    [picture] = case.generate("txt2img", captured, request(unit))
    assert "backend cudagraph refused: the UNet's forward was replaced by" in notes(picture)
    assert np.array_equal(picture.pixels, eager.pixels)
    [plain] = case.generate("txt2img", ALL, {**REQUEST, **SMALL})
    [picture] = case.generate("txt2img", captured, {**REQUEST, **SMALL})
    assert "12 by cudagraph" in picture.infotext
    assert np.abs(picture.pixels.astype(int) - plain.pixels).max() <= ROUNDING
