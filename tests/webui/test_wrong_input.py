"""Wrong input by the API: one sentence that names the field, the value and what is allowed, and no picture."""

import pytest

from .live import ALL, SMALLER, error_of

NUMBER = "a number from 0 to"
WRONG = [
    # given, the field that the answer names, its value, and what of the allowed
    ({"freu": {}}, "freu", "{}", "settings has enabled"),
    ({"Enabled": True}, "Enabled", "True", "settings has enabled"),
    ({"freeu": {"b3": 1.0}}, "freeu.b3", "1.0", "freeu has enabled, version, b1"),
    ({"cfg_cutoff": {"start": 0.1}}, "cfg_cutoff.start", "0.1", "cfg_cutoff has enabled, stop"),
    ({"deepcache": {"interval": 3}}, "deepcache.interval", "3", "deepcache has enabled, cache_interval"),
    ({"vae": {"decode": "tiny"}}, "vae.decode", "'tiny'", "vae has decoder"),
    ({"hires": {"vae": {}}}, "hires.vae", "{}", "hires has"),
    ({"hires": {"freeu": {"b9": 1}}}, "hires.freeu.b9", "1", "hires.freeu has"),
    ({"": 1}, "", "1", "settings has enabled"),
    ({"enabled": 1}, "enabled", "1", "true or false"),
    ({"enabled": "true"}, "enabled", "'true'", "true or false"),
    ({"enabled": None}, "enabled", "None", "true or false"),
    ({"freeu": True}, "freeu", "True", "an object with any of: enabled"),
    ({"freeu": None}, "freeu", "None", "an object with any of: enabled"),
    ({"freeu": [1.3, 1.4]}, "freeu", "[1.3, 1.4]", "an object with any of: enabled"),
    ({"freeu": {"enabled": "yes"}}, "freeu.enabled", "'yes'", "true or false"),
    ({"freeu": {"b1": "1.3"}}, "freeu.b1", "'1.3'", f"{NUMBER} 3"),
    ({"freeu": {"b1": True}}, "freeu.b1", "True", f"{NUMBER} 3"),
    ({"freeu": {"b1": None}}, "freeu.b1", "None", f"{NUMBER} 3"),
    ({"freeu": {"b2": 3.01}}, "freeu.b2", "3.01", f"{NUMBER} 3"),
    ({"freeu": {"s1": -0.1}}, "freeu.s1", "-0.1", f"{NUMBER} 3"),
    ({"freeu": {"s2": {"value": 1}}}, "freeu.s2", "{'value': 1}", f"{NUMBER} 3"),
    ({"freeu": {"s2": float("nan")}}, "freeu.s2", "nan", f"{NUMBER} 3"),
    ({"freeu": {"s2": float("inf")}}, "freeu.s2", "inf", f"{NUMBER} 3"),
    ({"freeu": {"version": 3}}, "freeu.version", "3", "1, 2"),
    ({"freeu": {"version": "2"}}, "freeu.version", "'2'", "1, 2"),
    ({"freeu": {"version": 1.5}}, "freeu.version", "1.5", "1, 2"),
    ({"freeu": {"start": 1.5}}, "freeu.start", "1.5", f"{NUMBER} 1"),
    ({"cfg_cutoff": {"stop": 2}}, "cfg_cutoff.stop", "2", f"{NUMBER} 1"),
    ({"cfg_cutoff": {"stop": [0.5]}}, "cfg_cutoff.stop", "[0.5]", f"{NUMBER} 1"),
    ({"deepcache": {"cache_interval": 0}}, "deepcache.cache_interval", "0", "an integer from 1 to 10"),
    ({"deepcache": {"cache_interval": 11}}, "deepcache.cache_interval", "11", "an integer from 1 to 10"),
    ({"deepcache": {"cache_interval": 2.5}}, "deepcache.cache_interval", "2.5", "an integer from 1 to 10"),
    ({"deepcache": {"cache_interval": 10**400}}, "deepcache.cache_interval", "1000", "an integer from 1 to 10"),
    ({"deepcache": {"cache_branch_id": -1}}, "deepcache.cache_branch_id", "-1", "an integer from 0 to"),
    ({"deepcache": {"mode": "Uniform"}}, "deepcache.mode", "'Uniform'", "uniform, nonuniform, adaptive"),
    ({"deepcache": {"mode": 0}}, "deepcache.mode", "0", "uniform, nonuniform, adaptive"),
    ({"deepcache": {"power": 0.5}}, "deepcache.power", "0.5", "a number from 1 to 4"),
    ({"vae": {"decoder": "TAESD"}}, "vae.decoder", "'TAESD'", "host, full, tiny"),
    ({"vae": "tiny"}, "vae", "'tiny'", "an object with any of: decoder"),
    ({"steps": 0}, "steps", "0", "an integer from 1 to 150, or null"),
    ({"steps": "30"}, "steps", "'30'", "an integer from 1 to 150, or null"),
    ({"hires": "yes"}, "hires", "'yes'", "same, off, or an object"),
    ({"hires": None}, "hires", "None", "same, off, or an object"),
    ({"hires": ["same"]}, "hires", "['same']", "same, off, or an object"),
    ({"hires": {"deepcache": {"cache_interval": 0}}}, "hires.deepcache.cache_interval", "0", "an integer from 1 to 10"),
    ({"hires": {"cfg_cutoff": {"stop": "0.5"}}}, "hires.cfg_cutoff.stop", "'0.5'", f"{NUMBER} 1"),
]


@pytest.fixture
def case(case):
    case.counts = False
    case.watch()
    return case


@pytest.mark.parametrize(("given", "field", "value", "allowed"), WRONG, ids=[str(wrong[0])[:40] for wrong in WRONG])
def test_wrong_settings(case, given, field, value, allowed):
    error = error_of(lambda: case.txt2img({**ALL, **given}, **SMALLER))
    assert error.status == 422
    said = error.body["detail"]
    assert said.startswith(f"{field}: {value}")
    assert f"is not allowed; allowed: {allowed}" in said
    assert case.calls() == []


@pytest.mark.parametrize("given", [[], None, "freeu", 3])
def test_settings_that_are_no_object(case, given):
    """The first argument is a dict, or the accordion's first checkbox; nothing else is taken for either."""
    scripts = {"sdxl optim": {"args": [given]}}
    error = error_of(lambda: case.txt2img(None, **SMALLER, alwayson_scripts=scripts))
    assert error.status == 422
    assert error.body["detail"].startswith(f"enabled: {given!r} is not allowed; allowed: true or false")
    case.requests.clear()  # the stock server knows no such script
    case.txt2img(**SMALLER)


def test_img2img_too(case):
    from .test_techniques import noise

    error = error_of(lambda: case.img2img(noise(64, 64), {"freeu": {"b1": 9}}, **SMALLER))
    assert error.status == 422
    assert error.body["detail"] == "freeu.b1: 9 is not allowed; allowed: a number from 0 to 3"
