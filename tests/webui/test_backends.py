"""The execution backends where there is no CUDA: named and greyed, but for inductor, which runs on the CPU."""

import re

import numpy as np
import psutil
import pytest

pytest.importorskip("playwright")

from . import browser, client
from .accordion import Tab
from .conftest import running
from .live import ALL, CUTOFF, DEEPCACHE, FREEU, SMALLER, comparable, difference, notes, reported

NEED_CUDA = {
    "cudagraph": "needs a CUDA device",
    "onediff": "needs a CUDA device",
    "stable-fast": "needs an NVIDIA GPU",
    "tensorrt": "needs an NVIDIA GPU",
}
LORA = "a red fox <lora:tiny-lora:0.8>"
WIDE = {**SMALLER, "width": 128}


def by(name: str, settings: dict | None = None) -> dict:
    return {**(settings or {}), "backend": {"name": name}}


def ssim(one: np.ndarray, other: np.ndarray) -> float:
    return pytest.importorskip("skimage.metrics").structural_similarity(one, other, channel_axis=2)


def executed(picture) -> int:
    """How many calls the infotext gives to a backend."""
    found = re.search(r"(\d+) by \w+", picture.infotext)
    return int(found[1]) if found else 0


@pytest.mark.parametrize("name", NEED_CUDA)
def test_a_backend_that_needs_cuda_runs_eagerly_and_says_why(case, name):
    eager = case.txt2img(ALL, **SMALLER)[0]
    other = case.txt2img(by(name, ALL), **SMALLER)[0]
    assert np.array_equal(other.pixels, eager.pixels)
    assert notes(other) == f"backend {name} refused: {NEED_CUDA[name]}; the calls ran eagerly"
    assert executed(other) == 0


def test_fp16_accumulation_is_refused_by_name(case):
    picture = case.txt2img({"backend": {"fp16_accumulation": True}}, **SMALLER)[0]
    assert notes(picture).startswith("fp16 accumulation refused: needs ")


def test_attention_by_torch_for_one_request(case, webui):
    eager = case.txt2img(**SMALLER)[0]
    before = case.state()["attention"]
    assert before != "sdp"
    logged = len(webui.log())
    picture = case.txt2img({"backend": {"attention": "sdpa"}}, **SMALLER)[0]
    applied = re.findall(r"Applying attention optimization: ([\w-]+)", webui.log()[logged:])
    assert applied == ["sdp", before]
    assert ssim(picture.pixels, eager.pixels) > 0.99
    case.fault("unet", "runtime", after=3)
    with pytest.raises(Exception, match="500"):
        case.txt2img({"backend": {"attention": "sdpa"}}, **SMALLER)
    assert case.state()["attention"] == before


def test_greyed_with_the_reason(webui, open_page):
    page = open_page(webui)
    tab = Tab(page)
    tab.switch(True, "enabled")
    browser.open_accordion(page, tab.elem_id("backend_section"))
    page.wait_for_timeout(500)
    for name in ("eager", *NEED_CUDA, "inductor"):
        radio = page.locator(f"#{tab.elem_id('backend', 'name')} input[value='{name}']")
        assert radio.is_disabled() == (name in NEED_CUDA), name
        if name in NEED_CUDA:
            assert radio.locator("..").get_attribute("title") == NEED_CUDA[name]
    assert page.locator(f"#{tab.elem_id('backend', 'fp16_accumulation')}-visible-checkbox").is_disabled()


# --- inductor, for real


COMPILING_SECONDS = 1800  # on two cores that others use, too

pytestmark = pytest.mark.timeout(2 * COMPILING_SECONDS)


@pytest.fixture(scope="module")
def own_webui():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(client, "TIMEOUT_SECONDS", COMPILING_SECONDS)
        yield from running()


def worked_seconds(webui) -> float:
    """Of all processors for the server and the compilers that it called: a clock on the wall would count what other
    servers of the tests do meanwhile."""
    process = psutil.Process(webui.process.pid)
    return sum(sum(each.cpu_times()[:4]) for each in (process, *process.children(recursive=True)))


def seconds_for(webui, settings: dict) -> tuple[float, object]:
    """What a picture takes, and the picture."""
    began = worked_seconds(webui)
    picture = webui.client.txt2img(settings, **SMALLER)[0]
    return worked_seconds(webui) - began, picture


@pytest.fixture(scope="module")
def compiled(own_webui):
    """Seconds that inductor's first picture took, and its second."""
    own_webui.client.txt2img({}, **SMALLER)
    return [seconds_for(own_webui, by("inductor"))[0] for _ in range(2)]


CASES = {
    "nothing": ({}, SMALLER),
    "another size": ({}, WIDE),
    "freeu": (FREEU, SMALLER),
    "deepcache": (DEEPCACHE, SMALLER),
    "cutoff": (CUTOFF, SMALLER),
    "all": (ALL, SMALLER),
    "lora": ({}, {**SMALLER, "prompt": LORA}),
    "lora and all": (ALL, {**SMALLER, "prompt": LORA}),
    "lora off again": (ALL, SMALLER),
    "token merging": ({}, {**SMALLER, "override_settings": {"token_merging_ratio": 0.5}}),
    "more token merging": ({}, {**SMALLER, "override_settings": {"token_merging_ratio": 0.25}}),
}


@pytest.mark.parametrize("name", CASES)
def test_inductor_makes_the_eager_picture(own_webui, compiled, name):
    settings, request = CASES[name]
    api = own_webui.client
    eager = api.txt2img(settings, **request)[0]
    picture = api.txt2img(by("inductor", settings), **request)[0]
    assert ssim(picture.pixels, eager.pixels) >= 0.99
    assert executed(picture) == request["steps"]
    assert not notes(picture)
    assert [{**r} for r in reported(picture)] == [{**r} for r in reported(eager)]
    if "lora" in name and "off" not in name:
        plain = api.txt2img(settings, **SMALLER)[0]
        assert not np.array_equal(plain.pixels, picture.pixels)


def without_compiled_code(state: dict) -> dict:
    """torch keeps what it compiled as modules of its own."""
    foreign = {name: place for name, place in state["foreign_code"].items() if not name.startswith("torch._inductor.")}
    return comparable({**state, "foreign_code": foreign})


def test_the_stock_picture_and_nothing_left(own_webui, compiled):
    api = own_webui.client
    stock = api.txt2img(**SMALLER)[0]
    before = without_compiled_code(api.state())
    api.txt2img(by("inductor", ALL), **SMALLER)
    again = api.txt2img(**SMALLER)[0]
    assert np.array_equal(stock.pixels, again.pixels)
    assert again.infotext == stock.infotext
    after = without_compiled_code(api.state())
    assert after == before, difference(before, after)


def test_a_second_start_takes_the_code_from_the_disk(own_webui, compiled):
    first, warm = compiled
    own_webui.stop()
    own_webui.log_file.write_text("")  # which tells of starts
    own_webui.start()
    own_webui.client.txt2img({}, **SMALLER)
    second, picture = seconds_for(own_webui, by("inductor"))
    assert executed(picture) == SMALLER["steps"]
    assert second - warm <= (first - warm) / 2, f"first start {first:.1f} s, second {second:.1f} s, warm {warm:.1f} s"
