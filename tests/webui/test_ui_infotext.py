"""Settings travel with the picture: pasted, sent from PNG Info, restored, switched off."""

import pytest
import requests

pytest.importorskip("playwright")

from sdxl_optim import settings as declared
from sdxl_optim.settings import Settings

from . import browser
from .accordion import SMALL, Tab, assert_same, by_api, ui_fields

MIXED = {
    "freeu": {"enabled": True, "version": 2, "b1": 1.15, "s2": 0.35, "start": 0.1, "stop": 0.9},
    "cfg_cutoff": {"enabled": True, "stop": 0.6},
    "deepcache": {"enabled": True, "cache_interval": 4, "cache_branch_id": 1, "mode": "nonuniform", "power": 2.0},
    "vae": {"decoder": "tiny"},
    "hires": {
        "freeu": {"enabled": True, "b2": 1.2},
        "cfg_cutoff": {"enabled": False, "stop": 0.4},
        "deepcache": {"enabled": True, "cache_interval": 2},
    },
}
TINY = {"vae": {"decoder": "tiny"}}


@pytest.fixture(scope="module")
def tab(webui, playwright):
    with browser.opened(playwright, webui.url) as page:
        yield Tab(page)


@pytest.fixture(scope="module")
def stock_picture(stock_webui):
    return by_api(stock_webui.client.txt2img(**SMALL)[0])


@pytest.fixture(scope="module")
def mixed_picture(webui):
    return by_api(webui.client.txt2img(MIXED, **SMALL)[0])


def paste(tab, text):
    browser.set_text(tab.page, f"{tab.name}_prompt", text)
    tab.page.click(f"#{tab.name}_tools #paste")
    tab.settle()


def chips(tab):
    """The override settings that paste left under the prompt."""
    place = tab.page.locator(f"#{tab.name}_override_settings")
    return place.locator(".token").all_inner_texts() if place.count() and place.is_visible() else []


def test_pasted_parameters_give_the_same_settings_and_picture(tab, mixed_picture):
    tab.set({"freeu": {"enabled": True, "b1": 2.0, "b2": 2.0}})
    paste(tab, mixed_picture.infotext)
    assert tab.settings() == declared.from_dict(MIXED)
    assert chips(tab) == []
    assert_same(tab.generate(), mixed_picture)


def test_a_picture_made_without_switches_it_off(tab, stock_picture, mixed_picture):
    paste(tab, mixed_picture.infotext)
    before = tab.settings()
    paste(tab, stock_picture.infotext)
    after = tab.settings()
    assert not after.enabled
    assert (after.freeu, after.deepcache, after.hires) == (before.freeu, before.deepcache, before.hires)
    assert_same(tab.generate(), stock_picture)


def test_a_bare_prompt_changes_nothing(tab, mixed_picture):
    paste(tab, mixed_picture.infotext)
    before = tab.settings()
    paste(tab, "a red fox in the snow, Steps of stone, SDXL")
    assert tab.settings() == before


def test_from_png_info_to_txt2img(webui, tab, open_page, mixed_picture):
    paste(tab, mixed_picture.infotext)
    assert_same(tab.generate(), mixed_picture)
    file = {"name": "fox.png", "mimeType": "image/png", "buffer": tab.file_in_gallery()}

    other = Tab(open_page(webui))
    assert other.settings() == Tab(other.page, "img2img").settings() == Settings()
    browser.show_tab(other.page, "tab_pnginfo")
    other.page.set_input_files("#pnginfo_image input[type=file]", file)
    other.page.wait_for_selector("#tab_pnginfo :text('SDXL Optim result')")
    other.settle()
    other.page.click("#tab_pnginfo #txt2img_tab")
    other.page.wait_for_selector("#tab_txt2img", state="visible")
    other.settle()
    assert other.settings() == declared.from_dict(MIXED)
    assert_same(other.generate(), mixed_picture)

    other.page.click("#txt2img_send_to_img2img")
    other.page.wait_for_selector("#tab_img2img", state="visible")
    other.settle()
    assert Tab(other.page, "img2img").settings() == declared.from_dict(MIXED)


def test_tiny_vae_leaves_no_override_chip(client, tab, stock_picture):
    tiny = by_api(client.txt2img(TINY, **SMALL)[0])
    assert "VAE Decoder: TAESD" in tiny.infotext
    paste(tab, tiny.infotext)
    assert chips(tab) == []
    assert tab.settings() == declared.from_dict(TINY)

    # What the host writes where the user's own option is TAESD. (No run with it: the host would keep the option.)
    paste(tab, stock_picture.infotext.replace(", Version:", ", VAE Decoder: TAESD, Version:"))
    assert [chip.split("\n")[0].strip() for chip in chips(tab)] == ["VAE Decoder: TAESD"]
    assert not tab.settings().enabled

    paste(tab, tiny.infotext)
    assert chips(tab) == []
    assert_same(tab.generate(), tiny)


def test_no_component_yields_none(webui):
    components = requests.get(f"{webui.url}/config", timeout=60).json()["components"]
    values = {c["props"].get("elem_id"): c["props"].get("value") for c in components}
    for name in ("txt2img", "img2img"):
        for field in ui_fields():
            elem_id = Tab.id_of(name, *field.path) + ("-checkbox" if field.declaration.kind == "toggle" else "")
            default = field.declaration.default
            assert values[elem_id] == ("none" if default is None else default), field.name
            assert type(values[elem_id]) in (bool, int, float, str)


def test_each_control_has_its_help_on_hover(tab):
    for field in ui_fields():
        title = tab.page.locator(f"#{tab.elem_id(*field.path)}").first.get_attribute("title")
        assert title == f"{field.declaration.help} ({field.declaration.allowed})", field.name
