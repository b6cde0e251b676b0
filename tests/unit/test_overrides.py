"""Axis values and combinations: what they switch on, what they leave, what they refuse."""

import pytest

from sdxl_optim import settings as declared
from sdxl_optim.errors import SettingsError
from sdxl_optim.settings import Settings, from_dict, overrides

BY_TITLE = {f.title: f for f in declared.fields()}


def laid_over(title: str, text: str, settings: Settings | None = None) -> Settings:
    return overrides.apply(settings or Settings(), overrides.read_value(BY_TITLE[title], text))


def test_a_value_enables_the_extension_and_its_technique():
    settings = laid_over("DeepCache interval", "5")
    assert settings.enabled
    assert settings.deepcache.enabled
    assert settings.deepcache.cache_interval == 5
    assert not settings.freeu.enabled


def test_off_leaves_a_switched_off_extension_off():
    assert laid_over("CFG cutoff stop", "off") == Settings()


def test_off_switches_only_its_technique_off():
    user = from_dict({"freeu": {"enabled": True}, "cfg_cutoff": {"enabled": True}})
    settings = laid_over("CFG cutoff stop", "off", user)
    assert settings.enabled
    assert settings.freeu.enabled
    assert not settings.cfg_cutoff.enabled


def test_a_folded_accordions_choices_do_not_come_along():
    folded = declared.from_flat({("freeu", "enabled"): True})
    assert not laid_over("DeepCache interval", "2", folded).freeu.enabled


def test_a_switch_of_its_own():
    assert laid_over("FreeU", "on").freeu.enabled
    assert laid_over("FreeU", "off") == Settings()


def test_a_value_of_the_hires_pass_gives_it_its_own_settings():
    settings = laid_over("Hires CFG cutoff stop", "0.5")
    assert settings.hires.mode == "own"
    assert settings.for_hires().cfg_cutoff.stop == 0.5
    assert not settings.cfg_cutoff.enabled


@pytest.mark.parametrize(("title", "text"), [("DeepCache interval", "33"), ("FreeU b1", "x"), ("VAE decoder", "off")])
def test_a_wrong_value_is_refused_in_words(title, text):
    with pytest.raises(SettingsError) as error:
        laid_over(title, text)
    assert BY_TITLE[title].title in str(error.value) or BY_TITLE[title].name in str(error.value)
    assert repr(text) in str(error.value)
    assert "allowed" in str(error.value)


def test_combination():
    changes = overrides.read_combination("freeu+cutoff 0.5+deepcache 4+tiny")
    settings = overrides.apply(Settings(), changes)
    assert settings.freeu.enabled
    assert settings.cfg_cutoff.stop == 0.5
    assert settings.deepcache.cache_interval == 4
    assert settings.vae.decoder == "tiny"


def test_the_words_for_memory():
    settings = overrides.apply(Settings(), overrides.read_combination("staged 5.6+fp8+tiling 256"))
    assert (settings.memory.offload, settings.memory.budget, settings.memory.weights) == ("staged", 5.6, "fp8")
    assert (settings.vae.tiling, settings.vae.tile_size) == (True, 256)
    assert overrides.apply(settings, overrides.read_combination("stock")).memory.offload == "host"
    assert overrides.apply(settings, overrides.read_combination("model")).memory.weights == "host"


def test_the_stock_combination_switches_everything_off():
    user = from_dict({"freeu": {"enabled": True}, "vae": {"decoder": "tiny"}})
    settings = overrides.apply(user, overrides.read_combination("stock"))
    assert not settings.freeu.enabled
    assert settings.vae.decoder == "host"
    assert overrides.apply(Settings(), overrides.read_combination("stock")) == Settings()


@pytest.mark.parametrize("text", ["speed", "freeu+", "tiny 3", "cutoff 7"])
def test_a_wrong_combination_is_refused(text):
    with pytest.raises(SettingsError):
        overrides.read_combination(text)


@pytest.mark.parametrize(
    ("given", "nothing"),
    [
        ({"enabled": False, "freeu": {"enabled": True}}, True),
        ({}, True),
        ({"freeu": {"b1": 1.1}, "deepcache": {"cache_interval": 5}}, True),
        ({"freeu": {"enabled": True}}, False),
        ({"vae": {"decoder": "tiny"}}, False),
        ({"hires": {"deepcache": {"enabled": True}}}, False),
    ],
)
def test_what_makes_the_stock_picture(given, nothing):
    assert overrides.runs_nothing(declared.from_dict(given)) is nothing
