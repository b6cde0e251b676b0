"""Presets: what they set, what the user's own settings do to them, and the file with one's own."""

import json

import pytest
from host_loop import facts_for

from sdxl_optim import settings as declared
from sdxl_optim.errors import SettingsError
from sdxl_optim.planning.plan import make_plan
from sdxl_optim.sampling.loop import Loop, Rows
from sdxl_optim.settings import Settings, from_dict, overrides, presets
from sdxl_optim.settings.preset_library import PresetLibrary, as_text, read
from sdxl_optim.settings.presets import BUILT_IN, Preset

FACTS = facts_for(Loop.of_steps([1] * 30), Rows(1, 1), 7.0, depth=9)


@pytest.fixture(autouse=True)
def no_own():
    presets.known.own = ()
    yield
    presets.known.own = ()


@pytest.fixture
def file(tmp_path):
    return PresetLibrary(tmp_path / "presets.json")


# --- the project's


@pytest.mark.parametrize("preset", BUILT_IN, ids=lambda p: p.name)
def test_each_is_valid_and_does_something(preset):
    assert preset.name in declared.fields()[1].declaration.choices
    settings = from_dict({"preset": preset.name})
    assert settings.preset == preset.name
    assert not overrides.runs_nothing(settings)
    assert settings.steps is None
    assert preset.about.endswith(".")


@pytest.mark.parametrize("preset", BUILT_IN, ids=lambda p: p.name)
def test_a_plan_without_changes_has_no_note_on_the_preset(preset):
    plan = make_plan(from_dict({"preset": preset.name}), FACTS)
    assert [n for n in plan.notes if n.feature == "preset"] == []


def test_the_faster_the_less_is_computed():
    def full(name):
        prediction = make_plan(from_dict({"preset": name}), FACTS).prediction
        return prediction.rows - prediction.cached_rows

    names = ("fastest", "fast", "balanced", "quality")
    assert [full(n) for n in names] == sorted(map(full, names))
    assert len(set(map(full, names))) == len(names)


# --- what the user set wins


def test_what_is_set_wins_and_the_plan_says_so():
    settings = from_dict({"preset": "fastest", "deepcache": {"cache_interval": 5}, "vae": {"decoder": "host"}})
    assert settings.deepcache.enabled
    assert settings.deepcache.cache_interval == 5
    assert settings.cfg_cutoff.enabled
    assert settings.vae.decoder == "host"
    notes = [str(n) for n in make_plan(settings, FACTS).notes]
    assert notes[:2] == [
        "preset note: fastest has DeepCache interval 3; 5 is used, as set",
        "preset note: fastest has VAE decoder tiny; host is used, as set",
    ]


def test_also_when_it_is_set_to_the_default():
    assert not from_dict({"preset": "quality", "freeu": {"enabled": False}}).freeu.enabled


def test_the_hires_pass_is_not_measured_by_the_preset():
    settings = from_dict({"preset": "fastest", "hires": "off"})
    assert [n for n in make_plan(settings.for_hires(), FACTS).notes if n.feature == "preset"] == []


def test_settings_read_back_to_themselves():
    settings = from_dict({"preset": "fast", "freeu": {"enabled": True}})
    assert from_dict(declared.to_dict(settings)) == settings


def test_no_preset_by_null_or_none():
    assert from_dict({"preset": None}) == from_dict({"preset": "none"}) == from_dict({})


@pytest.mark.parametrize("name", ["Fast", "slow", "", 3, True])
def test_an_unknown_preset_is_refused_in_words(name):
    with pytest.raises(SettingsError) as error:
        from_dict({"preset": name})
    assert str(error.value).startswith(f"preset: {name!r} is not allowed; allowed: fastest, fast, balanced, quality")


# --- an axis of the X/Y/Z plot

AXIS = next(f for f in declared.fields() if f.path == ("preset",))


@pytest.mark.parametrize("first", [True, False])
def test_another_axis_goes_over_the_presets_whichever_comes_first(first):
    interval = next(f for f in declared.fields() if f.path == ("deepcache", "cache_interval"))
    parts = [overrides.read_value(AXIS, "fastest"), overrides.read_value(interval, "5")]
    changes = {**parts[0], **parts[1]} if first else {**parts[1], **parts[0]}
    settings = overrides.apply(from_dict({"freeu": {"enabled": True}}), changes)
    assert settings == from_dict({"preset": "fastest", "deepcache": {"enabled": True, "cache_interval": 5}})


def test_off_is_the_stock_picture_and_none_what_is_held():
    held = from_dict({"freeu": {"enabled": True}})
    assert overrides.runs_nothing(overrides.apply(held, overrides.read_value(AXIS, "off")))
    assert overrides.apply(held, overrides.read_value(AXIS, "none")) == held
    assert overrides.apply(Settings(), overrides.read_value(AXIS, "off")) == Settings()


def test_a_wrong_axis_value_is_refused():
    with pytest.raises(SettingsError, match="or off"):
        overrides.read_value(AXIS, "fastet")


# --- one's own


def mine(name="mine", **more) -> Preset:
    return Preset(name, **{"about": "", "settings": {"deepcache": {"enabled": True}}, "steps": 25, **more})


def test_saved_renamed_deleted_and_still_so_after_a_restart(file):
    file.save(mine())
    file.save(mine("other", steps=None))
    file.rename("mine", "日常")
    file.delete("other")
    presets.known.own = ()
    assert file.load() is None
    assert presets.known.own == (mine("日常"),)
    assert from_dict({"preset": "日常"}).deepcache.enabled
    with pytest.raises(SettingsError):
        from_dict({"preset": "mine"})


def test_saving_again_replaces(file):
    file.save(mine())
    file.save(mine(steps=12))
    assert presets.known.own == (mine(steps=12),)


@pytest.mark.parametrize("name", ["fastest", "FAST", "none", "off", "", " x", "a,b", "a+b", "x" * 41, "a\nb"])
def test_names_that_are_not_allowed(file, name):
    with pytest.raises(SettingsError, match="preset name"):
        file.save(mine(name))
    assert not file.path.exists()


def test_a_name_that_is_taken(file):
    file.save(mine())
    file.save(mine("other"))
    with pytest.raises(SettingsError, match="no other preset"):
        file.rename("mine", "other")
    for change in (lambda: file.rename("nobody", "x"), lambda: file.delete("fastest")):
        with pytest.raises(SettingsError, match="one of your own: mine, other"):
            change()
    assert [p.name for p in presets.known.own] == ["mine", "other"]


def test_export_and_import(file, tmp_path):
    file.save(mine())
    text = as_text(list(presets.known.own))
    assert file.bring_in(text) == ["mine 2"]
    assert [p.name for p in presets.known.own] == ["mine", "mine 2"]
    assert read(text) == ([mine()], [])


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"presets": 3}', '{"presets": {"x": {"settings": {"freeu": {"b9": 1}}}}}']
)
def test_a_broken_import_changes_nothing(file, text):
    file.save(mine())
    before = file.path.read_text("utf-8")
    with pytest.raises(SettingsError):
        file.bring_in(text)
    assert presets.known.own == (mine(),)
    assert file.path.read_text("utf-8") == before


@pytest.mark.parametrize("content", [b"{torn", b"\xff\xfe\x00", b"[]"])
def test_a_broken_file_is_set_aside(file, content):
    file.path.write_bytes(content)
    message = file.load()
    aside = [p for p in file.path.parent.iterdir() if "broken" in p.name]
    assert len(aside) == 1
    assert aside[0].name in message
    assert aside[0].read_bytes() == content
    assert presets.known.own == ()
    file.save(mine())
    assert file.load() is None


def test_a_broken_file_is_set_aside_once(file, monkeypatch):
    seconds = map(str, range(9))
    monkeypatch.setattr("time.strftime", lambda *_: next(seconds))
    for content in (b"{torn", b"{torn", b"{another", b"{torn"):
        file.path.write_bytes(content)
        assert "broken-" in file.load()
    aside = sorted(p.read_bytes() for p in file.path.parent.iterdir() if "broken" in p.name)
    assert aside == [b"{another", b"{torn"]


def test_a_mark_that_an_editor_puts_in_front(file):
    text = as_text([mine()])
    file.path.write_text(text, "utf-8-sig")
    assert file.load() is None
    assert presets.known.own == (mine(),)


def test_one_broken_entry_does_not_take_the_others_along(file):
    good = json.loads(as_text([mine()]))
    good["presets"]["bad"] = {"settings": {"deepcache": {"cache_interval": 99}}}
    file.path.write_text(json.dumps(good), "utf-8")
    message = file.load()
    assert "bad" in message
    assert "99" in message
    assert presets.known.own == (mine(),)


def test_what_can_not_be_written_changes_nothing(tmp_path):
    (tmp_path / "taken").write_text("a file where the folder should be")
    file = PresetLibrary(tmp_path / "taken" / "presets.json")
    with pytest.raises(SettingsError, match="can be written"):
        file.save(mine())
    assert presets.known.own == ()


def test_a_sparse_dict_holds_what_differs():
    settings = from_dict({"freeu": {"enabled": True}, "hires": {"deepcache": {"enabled": True}}})
    sparse = declared.to_sparse_dict(settings)
    assert sparse == {"enabled": True, "freeu": {"enabled": True}, "hires": {"deepcache": {"enabled": True}}}
    assert from_dict(sparse) == settings
    assert declared.to_sparse_dict(from_dict({"hires": "off"})) == {"enabled": True, "hires": "off"}
