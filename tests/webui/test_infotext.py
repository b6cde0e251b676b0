"""Infotext: what is written restores settings and picture; what happened is in the picture's alone."""

import random

import numpy as np
import pytest

from sdxl_optim import settings as declared

from . import client as api
from .live import ALL, CUTOFF, HIRES, SMALLER, reported

IN_UI = [f for f in declared.fields() if f.declaration.in_ui]


def random_value(f, rng: random.Random):
    d = f.declaration
    if d.kind == "toggle":
        return rng.random() < 0.5
    if d.kind == "choice":
        return rng.choice(d.choices)
    steps = round((d.hi - d.lo) / d.step)
    value = d.lo + d.step * rng.randint(0, steps)
    return int(value) if d.integer else round(value, 2)


def random_settings(rng: random.Random) -> dict:
    """Any of the settings changed, with the extension switched on; the API's dict."""
    values = {f.path: random_value(f, rng) for f in IN_UI if rng.random() < 0.5}
    return declared.to_dict(declared.from_flat({**values, ("enabled",): True}))


def test_200_random_settings_come_back_through_the_hosts_own_functions(case):
    rng = random.Random(2309)
    given = [random_settings(rng) for _ in range(200)]
    answers = case.post("/others/infotext_roundtrip", settings=given)["answers"]
    for settings, answer in zip(given, answers, strict=True):
        same = declared.from_dict(settings)
        assert declared.from_dict(answer["read"]) == same, answer["infotext"]
        assert declared.from_dict(answer["pasted"]) == same, answer["infotext"]


OWN_SAMPLER = {"hr_sampler_name": "DPM++ 2M", "hr_scheduler": "SGM Uniform"}
REQUESTS = {
    "all": (ALL, {}),
    "cutoff": (CUTOFF, {}),
    # with a sampler and schedule of its own: the host's API can't restore "the same", nor a sampler's usual schedule
    "hires": ({**ALL, "hires": {"cfg_cutoff": {"enabled": True}}}, {**HIRES, **OWN_SAMPLER}),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_the_infotext_field_restores_settings_and_picture(case, name):
    script, request = REQUESTS[name]
    picture = case.txt2img(script, **SMALLER, **request)[0]
    [again] = case.generate("txt2img", None, {"infotext": picture.infotext})
    case.requests.popitem()  # it has no stock picture without the extension
    assert np.array_equal(again.pixels, picture.pixels)
    assert reported(again) == reported(picture)
    ours = lambda text: sorted(part for part in text.split(", ") if part.startswith("SDXL Optim"))  # noqa: E731
    assert ours(again.infotext) == ours(picture.infotext)


@pytest.mark.parametrize("seed", range(6))
def test_random_settings_by_the_infotext_field(case, seed):
    script = random_settings(random.Random(seed))
    picture = case.txt2img(script, **SMALLER)[0]
    [again] = case.generate("txt2img", None, {"infotext": picture.infotext})
    case.requests.popitem()
    assert np.array_equal(again.pixels, picture.pixels)
    assert reported(again) == reported(picture)


def test_a_stock_pictures_infotext_switches_it_off(case):
    case.counts = False
    stock = case.txt2img(**SMALLER)[0]
    [again] = case.generate("txt2img", None, {"infotext": stock.infotext})
    assert api.same(again, stock)


def test_settings_are_in_params_txt_and_what_happened_is_not(case, webui):
    picture = case.txt2img(ALL, **SMALLER)[0]
    params = (webui.data / "params.txt").read_text()
    assert "SDXL Optim CFG cutoff: True" in params
    assert "SDXL Optim CFG cutoff stop: 0.5" in params
    assert "result" not in params
    assert "notes" not in params
    assert "SDXL Optim result" in picture.infotext


def test_only_what_differs_from_the_default_is_written(case):
    picture = case.txt2img({"freeu": {"enabled": True, "b1": 1.3, "b2": 1.5}}, **SMALLER)[0]
    ours = [part for part in picture.infotext.split(", ") if part.startswith("SDXL Optim")]
    assert ours[:3] == ["SDXL Optim: True", "SDXL Optim FreeU: True", "SDXL Optim FreeU b2: 1.5"]
    assert len(ours) == 4
    assert ours[3].startswith("SDXL Optim result")
