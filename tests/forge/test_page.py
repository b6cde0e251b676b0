"""The page of Forge (gradio 4) and reForge (gradio 3): the accordion at work, from a first look to an undone run."""

import numpy as np
import pytest

pytest.importorskip("playwright")

from webui import browser
from webui.accordion import Tab

from sdxl_optim.settings import presets

SMALL = {"steps": 6, "width": 64, "height": 64}
EVERYTHING = {
    "freeu": {"enabled": True},
    "cfg_cutoff": {"enabled": True, "stop": 0.5},
    "deepcache": {"enabled": True, "cache_interval": 2},
    "vae": {"decoder": "tiny"},
}
GREYED = [("memory_offload", "model"), ("memory_weights", "fp8"), ("vae_precision", "bf16"),
          ("backend_name", "cudagraph"), ("backend_name", "inductor"), ("backend_attention", "sdpa")]  # fmt: skip


def fill_in(forge, tab: Tab) -> None:
    """reForge's page fails by itself when a width or a height is typed in, with this extension or without."""
    tab.fill_in(**SMALL)
    tab.page.wait_for_timeout(1500)
    errors = tab.page.errors
    assert len(errors) <= (2 if forge.host == "reforge" else 0), errors
    assert all("reading 'props'" in error for error in errors), errors
    errors.clear()


def generated(tab: Tab) -> tuple[np.ndarray, str]:
    """The first picture and the infotext below it."""
    tab.page.click("#txt2img_generate")
    tab.page.wait_for_selector("#txt2img_interrupt", state="visible")
    browser.wait_until_generated(tab.page)
    tab.page.wait_for_timeout(1500)
    return browser.pictures(tab.page)[0], tab.page.locator("#html_info_txt2img").first.inner_text()


def reported(tab: Tab, text: str) -> bool:
    """Whether the report comes to hold `text` (or, if that is empty, nothing): it is fetched after the run."""
    for _ in range(100):
        if text in tab.report() and bool(text) == bool(tab.report()):
            return True
        tab.page.wait_for_timeout(200)
    return False


def test_from_a_first_look_to_stock_again(forge, page):
    tab = Tab(page)
    fill_in(forge, tab)
    stock, infotext = generated(tab)
    assert "SDXL Optim" not in infotext
    assert reported(tab, "")

    tab.set(EVERYTHING)
    assert "6 steps; 3 full and 3 cached; guidance off after step 3; FreeU;" in tab.planned("guidance off")
    picture, infotext = generated(tab)
    assert 'SDXL Optim result: "6 calls, 9 of 12 rows, 3 full and 3 cached, FreeU in 3"' in infotext
    assert reported(tab, "6 calls, 9 of 12 rows, 3 full and 3 cached, FreeU in 3")
    assert "decoded by TAESD" in tab.report()
    assert not np.array_equal(picture, stock)

    tab.off()
    again, infotext = generated(tab)
    assert np.array_equal(again, stock)
    assert "SDXL Optim" not in infotext
    assert reported(tab, "")
    assert page.errors == []


def test_what_cannot_be_had_is_greyed(page):
    tab = Tab(page)
    tab.switch(True, "enabled")
    for control, choice in GREYED:
        radio = page.locator(f"#{tab.elem_id(control)} input[value='{choice}']")
        assert radio.is_disabled(), (control, choice)
        assert "orge" in radio.locator("..").get_attribute("title"), (control, choice)
    for control, choice in (("vae_decoder", "tiny"), ("backend_name", "eager"), ("memory_offload", "host")):
        assert page.locator(f"#{tab.elem_id(control)} input[value='{choice}']").is_enabled()
    browser.open_accordion(page, tab.elem_id("vae_tiling"))
    page.wait_for_timeout(1000)
    tiling = page.locator(f"#{tab.elem_id('vae_tiling')}-visible-checkbox")
    assert tiling.is_disabled()
    assert not tiling.is_checked()  # opening one that is not greyed ticks it
    assert not tab.settings().vae.tiling
    assert page.errors == []


def test_every_preset_fills_the_controls_and_has_a_plan(forge, page):
    tab = Tab(page)
    fill_in(forge, tab)
    tab.switch(True, "enabled")
    for preset in presets.BUILT_IN:
        tab.preset(preset.name)
        shown = tab.planned("6 steps")
        while "is used, as set" in shown:  # the controls are still being filled
            shown = tab.planned("6 steps")
        assert "no plan yet" not in shown
        assert ("Memory offload refused" in shown) == (preset.settings.get("memory", {}).get("offload") is not None)
    assert page.errors == []


def test_a_pictures_parameters_bring_the_settings_back(page):
    tab = Tab(page)
    tab.fill_in(**SMALL)
    tab.set(EVERYTHING)
    wanted = tab.settings()
    _, infotext = generated(tab)
    tab.off()
    browser.set_text(page, "txt2img_prompt", infotext)
    page.click("#paste")
    page.wait_for_timeout(3000)
    assert tab.settings() == wanted


def test_the_tab_and_the_settings_page_are_there(page):
    browser.show_tab(page, "tab_sdxl_optim")
    assert page.locator("#sdxl_optim_bench_start").is_visible()
    assert page.locator("#setting_sdxl_optim_grid_report").count() == 1
    # It stands for --medvram-sdxl, which Forge ignores.
    assert page.locator("#setting_sdxl_optim_load_into_main_memory").count() == 0
    assert page.errors == []
