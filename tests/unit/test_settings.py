"""Settings: what is accepted, what is refused and in which words, and that nothing is lost on the way."""

from __future__ import annotations

import dataclasses
import json
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdxl_optim.errors import SettingsError
from sdxl_optim.settings import (
    Declaration,
    Settings,
    changed,
    fields,
    flatten,
    from_dict,
    from_flat,
    get,
    to_dict,
)
from sdxl_optim.settings.presets import BUILT_IN

DESIGN = """{
  "enabled": true,
  "preset": null,
  "steps": null,
  "freeu":      {"enabled": false, "version": 1, "b1": 1.3, "b2": 1.4, "s1": 0.9, "s2": 0.2, "start": 0.0, "stop": 1.0},
  "cfg_cutoff": {"enabled": false, "stop": 0.75},
  "deepcache":  {"enabled": false, "cache_interval": 3, "cache_branch_id": 0, "start": 0.0, "stop": 1.0,
                 "mode": "uniform"},
  "vae":        {"decoder": "host", "precision": "host", "tiling": false},
  "backend":    {"name": "eager", "attention": "host", "fp16_accumulation": false},
  "memory":     {"offload": "host", "weights": "host"},
  "hires":      "same"
}"""


def values_of(declaration: Declaration):
    """A strategy for all values that a setting takes."""
    if declaration.kind == "toggle":
        values = st.booleans()
    elif declaration.kind == "choice":
        values = st.sampled_from(declaration.choices) if declaration.choices else st.nothing()
    elif declaration.integer:
        values = st.integers(declaration.lo, declaration.hi)
    else:
        values = st.floats(declaration.lo, declaration.hi)
    return st.none() | values if declaration.nullable else values


any_settings = st.fixed_dictionaries({}, optional={f.path: values_of(f.declaration) for f in fields()}).map(from_flat)


def refusal(given) -> str:
    with pytest.raises(SettingsError) as caught:
        from_dict(given)
    assert str(caught.value).startswith(caught.value.field + ": ")
    return str(caught.value)


# --- accepted


def test_the_documented_example_is_accepted_and_is_the_default():
    assert from_dict(json.loads(DESIGN)) == dataclasses.replace(Settings(), enabled=True)


def test_every_key_of_the_documented_example_is_a_setting():
    def paths(value, path=()):
        for key, inner in value.items():
            yield from paths(inner, (*path, key)) if isinstance(inner, dict) else [(*path, key)]

    known = {f.path for f in fields()}
    assert {p for p in paths(json.loads(DESIGN)) if p != ("hires",)} <= known


def test_an_empty_dict_is_enabled_with_nothing_else_changed():
    assert from_dict({}) == dataclasses.replace(Settings(), enabled=True)
    assert [f.path for f in changed(from_dict({}))] == [("enabled",)]
    assert changed(Settings()) == {}


def test_a_subset_leaves_the_rest_at_its_default():
    settings = from_dict({"freeu": {"enabled": True, "b1": 1}, "steps": 12})
    assert settings.freeu == dataclasses.replace(Settings().freeu, enabled=True, b1=1.0)
    assert type(settings.freeu.b1) is float
    assert settings.steps == 12
    assert settings.deepcache == Settings().deepcache


def test_whole_floats_are_integers_where_integers_are_meant():
    value = from_dict({"deepcache": {"cache_interval": 4.0}}).deepcache.cache_interval
    assert (value, type(value)) == (4, int)


def test_off_is_off():
    assert from_dict({"enabled": False}) == Settings()


@pytest.mark.parametrize(("hires", "mode"), [("same", "same"), ("off", "off"), ({}, "own"), ({"mode": "off"}, "off")])
def test_hires(hires, mode):
    assert from_dict({"hires": hires}).hires.mode == mode


def test_the_second_pass_has_the_same_no_or_its_own_techniques():
    base = {
        "freeu": {"enabled": True},
        "deepcache": {"enabled": True, "cache_interval": 5},
        "cfg_cutoff": {"enabled": True},
        "vae": {"decoder": "tiny"},
    }
    same = from_dict({**base, "hires": "same"})
    assert same.for_hires() is same
    off = from_dict({**base, "hires": "off"}).for_hires()
    assert [off.freeu.enabled, off.cfg_cutoff.enabled, off.deepcache.enabled] == [False] * 3
    assert off.vae.decoder == "tiny"
    own = from_dict({**base, "hires": {"deepcache": {"enabled": True, "cache_interval": 2}}}).for_hires()
    assert [own.freeu.enabled, own.cfg_cutoff.enabled, own.deepcache.enabled] == [False, False, True]
    assert own.deepcache.cache_interval == 2
    assert own.vae.decoder == "tiny"


# --- refused, in words


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"freeu": {"b1": 3.01}}, "freeu.b1: 3.01 is not allowed; allowed: a number from 0 to 3"),
        ({"freeu": {"b1": -0.01}}, "freeu.b1: -0.01 is not allowed; allowed: a number from 0 to 3"),
        ({"freeu": {"s1": math.nan}}, "freeu.s1: nan is not allowed; allowed: a number from 0 to 3"),
        ({"freeu": {"s2": math.inf}}, "freeu.s2: inf is not allowed; allowed: a number from 0 to 3"),
        ({"freeu": {"b2": "1.4"}}, "freeu.b2: '1.4' is not allowed; allowed: a number from 0 to 3"),
        ({"freeu": {"b2": True}}, "freeu.b2: True is not allowed; allowed: a number from 0 to 3"),
        ({"freeu": {"b2": None}}, "freeu.b2: None is not allowed; allowed: a number from 0 to 3"),
        ({"freeu": {"b2": [1.4]}}, "freeu.b2: [1.4] is not allowed; allowed: a number from 0 to 3"),
        ({"freeu": {"enabled": 1}}, "freeu.enabled: 1 is not allowed; allowed: true or false"),
        ({"freeu": {"enabled": "true"}}, "freeu.enabled: 'true' is not allowed; allowed: true or false"),
        ({"freeu": {"enabled": None}}, "freeu.enabled: None is not allowed; allowed: true or false"),
        ({"freeu": {"version": 3}}, "freeu.version: 3 is not allowed; allowed: 1, 2"),
        ({"freeu": {"version": True}}, "freeu.version: True is not allowed; allowed: 1, 2"),
        ({"freeu": {"version": 1.0}}, "freeu.version: 1.0 is not allowed; allowed: 1, 2"),
        ({"cfg_cutoff": {"stop": 75}}, "cfg_cutoff.stop: 75 is not allowed; allowed: a number from 0 to 1"),
        (
            {"deepcache": {"cache_interval": 0}},
            "deepcache.cache_interval: 0 is not allowed; allowed: an integer from 1 to 10",
        ),
        (
            {"deepcache": {"cache_interval": 2.5}},
            "deepcache.cache_interval: 2.5 is not allowed; allowed: an integer from 1 to 10",
        ),
        (
            {"deepcache": {"cache_interval": False}},
            "deepcache.cache_interval: False is not allowed; allowed: an integer from 1 to 10",
        ),
        (
            {"deepcache": {"cache_branch_id": 12}},
            "deepcache.cache_branch_id: 12 is not allowed; allowed: an integer from 0 to 11",
        ),
        (
            {"deepcache": {"mode": "evenly"}},
            "deepcache.mode: 'evenly' is not allowed; allowed: uniform, nonuniform, adaptive",
        ),
        ({"vae": {"decoder": "Tiny"}}, "vae.decoder: 'Tiny' is not allowed; allowed: host, full, tiny"),
        ({"vae": {"decoder": ["tiny"]}}, "vae.decoder: ['tiny'] is not allowed; allowed: host, full, tiny"),
        ({"vae": {"tiling": 0}}, "vae.tiling: 0 is not allowed; allowed: true or false"),
        ({"vae": {"tile_size": 100}}, "vae.tile_size: 100 is not allowed; allowed: an integer from 256 to 2048"),
        (
            {"vae": {"precision": "fp64"}},
            "vae.precision: 'fp64' is not allowed; allowed: host, auto, fp16, bf16, fp32",
        ),
        (
            {"memory": {"offload": "disk"}},
            "memory.offload: 'disk' is not allowed; allowed: host, staged, model, sequential",
        ),
        ({"memory": {"weights": "fp4"}}, "memory.weights: 'fp4' is not allowed; allowed: host, fp8"),
        (
            {"backend": {"name": "fast"}},
            "backend.name: 'fast' is not allowed; allowed: eager, cudagraph, inductor, onediff, stable-fast, tensorrt",
        ),
        ({"steps": 0}, "steps: 0 is not allowed; allowed: an integer from 1 to 150, or null"),
        ({"steps": 151}, "steps: 151 is not allowed; allowed: an integer from 1 to 150, or null"),
        (
            {"preset": "slowest"},
            f"preset: 'slowest' is not allowed; allowed: {', '.join(p.name for p in BUILT_IN)}, or null",
        ),
        ({"enabled": "yes"}, "enabled: 'yes' is not allowed; allowed: true or false"),
        (
            {"freeu": True},
            "freeu: True is not allowed; allowed: an object with any of: enabled, version, b1, b2, s1, s2, start, stop",
        ),
        (
            {"cfg_cutoff": None},
            "cfg_cutoff: None is not allowed; allowed: an object with any of: enabled, stop",
        ),
        ({"cfg_cutoff": []}, "cfg_cutoff: [] is not allowed; allowed: an object with any of: enabled, stop"),
        (
            {"cfg_cutoff": {"Stop": 0.5}},
            "cfg_cutoff.Stop: 0.5 is not allowed; allowed: cfg_cutoff has enabled, stop",
        ),
        ({"hires": {"freeu": {"b1": 9}}}, "hires.freeu.b1: 9 is not allowed; allowed: a number from 0 to 3"),
        ({"hires": {"mode": "none"}}, "hires.mode: 'none' is not allowed; allowed: same, off, own"),
    ],
)
def test_refused(given, message):
    assert refusal(given) == message


@pytest.mark.parametrize("hires", ["own", "on", None, True, 1, ["off"]])
def test_hires_takes_two_words_or_an_object(hires):
    allowed = "same, off, or an object with any of: freeu, cfg_cutoff, deepcache"
    assert refusal({"hires": hires}) == f"hires: {hires!r} is not allowed; allowed: {allowed}"


@pytest.mark.parametrize("key", ["freeU", "", "deepcache.enabled", 7, "__class__"])
def test_an_unknown_key_is_named_beside_the_known_ones(key):
    message = refusal({key: 1})
    assert message.startswith(f"{key}: 1 is not allowed; allowed: settings has enabled, preset, steps, freeu,")


def test_hires_has_no_vae_of_its_own():
    assert refusal({"hires": {"vae": {}}}).startswith("hires.vae: {} is not allowed; allowed: hires has mode, freeu")


@pytest.mark.parametrize("given", [None, [], "fastest", 3, True])
def test_only_an_object_will_do(given):
    assert refusal(given).startswith(f"settings: {given!r} is not allowed; allowed: an object with any of: enabled,")


@pytest.mark.parametrize("field", [f for f in fields() if f.declaration.kind == "slider"], ids=lambda f: f.name)
@pytest.mark.parametrize(
    "value",
    [10**400, -(10**400), 1e308, math.nan, -math.inf],
    ids=["big", "negative", "1e308", "nan", "-inf"],
)
def test_no_number_is_too_odd_to_be_refused_in_words(field, value):
    nested = value
    for key in reversed(field.path):
        nested = {key: nested}
    with pytest.raises(SettingsError) as caught:
        from_dict(nested)
    assert caught.value.field == field.name
    assert caught.value.allowed == field.declaration.allowed


@given(
    st.sampled_from(fields()),
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.none()),
)
def test_any_value_is_kept_or_refused_by_name(field, value):
    nested = value
    for key in reversed(field.path):
        nested = {key: nested}
    caught = None
    try:
        settings = from_dict(nested)
    except SettingsError as error:
        caught = error
    if caught is None:
        assert get(settings, field.path) == value
    else:
        assert caught.field == field.name
        assert caught.value is value
        assert str(field.declaration.allowed) in str(caught)


def test_nothing_is_half_applied():
    given = {"freeu": {"enabled": True, "b1": 99}}
    before = json.dumps(given)
    refusal(given)
    assert json.dumps(given) == before
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().freeu.b1 = 2.0


# --- nothing is lost


@given(any_settings)
def test_a_dict_reads_back_to_the_same_settings(settings):
    assert from_dict(to_dict(settings)) == settings
    assert from_dict(json.loads(json.dumps(to_dict(settings)))) == settings


@given(any_settings)
def test_flat_values_read_back_to_the_same_settings(settings):
    assert from_flat(flatten(settings)) == settings
    assert from_flat({f.path: value for f, value in changed(settings).items()}) == settings


@given(any_settings)
def test_written_values_are_read_back(settings):
    for field, value in changed(settings).items():
        if value is not None:
            read = field.declaration.read(field.name, f" {value} ")
            assert (read, type(read)) == (value, type(value))


@pytest.mark.parametrize("text", ["", "yes", "nan", "inf", "1e999", "0x1", "None", "1,4", "true false"])
def test_unreadable_text_is_refused_by_name(text):
    for field in fields():
        with pytest.raises(SettingsError, match=re.escape(field.name)):
            field.declaration.read(field.name, text)


def test_to_dict_writes_hires_the_short_way_where_it_can():
    assert to_dict(Settings())["hires"] == "same"
    assert to_dict(from_dict({"hires": "off"}))["hires"] == "off"


# --- the declarations


def test_every_default_is_allowed():
    for field in fields():
        assert field.declaration.check(field.name, field.declaration.default) == field.declaration.default
        assert get(Settings(), field.path) == field.declaration.default


def test_infotext_keys_are_ones_the_host_reads():
    keys = [field.infotext_key for field in fields()]
    assert len({key.lower() for key in keys}) == len(keys)
    for key in keys:
        assert re.fullmatch(r"\w[\w \-/]+", key)
        assert key == " ".join(key.split())
        assert re.findall(
            r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)', f"Steps: 20, {key}: 0.5, Size: 8x8"
        ) == [
            ("Steps", "20"),
            (key, "0.5"),
            ("Size", "8x8"),
        ]


def test_infotext_keys_stay_what_written_pictures_say():
    keys = {field.name: field.infotext_key for field in fields()}
    assert keys["enabled"] == "SDXL Optim"
    assert keys["freeu.enabled"] == "SDXL Optim FreeU"
    assert keys["freeu.b1"] == "SDXL Optim FreeU b1"
    assert keys["cfg_cutoff.stop"] == "SDXL Optim CFG cutoff stop"
    assert keys["deepcache.cache_interval"] == "SDXL Optim DeepCache interval"
    assert keys["vae.decoder"] == "SDXL Optim VAE decoder"
    assert keys["hires.freeu.b1"] == "SDXL Optim Hires FreeU b1"


def test_titles_are_unique_in_the_interface():
    titles = [field.title for field in fields()]
    assert len(set(titles)) == len(titles)


def test_every_setting_has_a_help_text_that_is_a_sentence():
    for field in fields():
        assert field.declaration.help.endswith("."), field.name
        assert field.declaration.label, field.name
