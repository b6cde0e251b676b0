"""As a new user would: choose a preset, generate, see what happened, compare with stock, undo. `SDXL_OPTIM_SHOTS` names
a folder for pictures of each step."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("playwright")

from sdxl_optim.settings import presets

from . import browser
from .accordion import SMALL, Tab, assert_same, by_api
from .client import rows
from .live import SMALLER, reported

NAMES = [p.name for p in presets.BUILT_IN]


@pytest.fixture(scope="module")
def stock_picture(stock_webui):
    return by_api(stock_webui.client.txt2img(**{**SMALL, "steps": 20})[0])


@pytest.fixture(scope="module")
def tab(webui, playwright):
    with browser.opened(playwright, webui.url) as page:
        tab = Tab(page)
        tab.fill_in(steps=20)
        yield tab


def shot(tab, name: str) -> None:
    folder = os.environ.get("SDXL_OPTIM_SHOTS")
    if folder:
        tab.page.wait_for_timeout(400)
        tab.page.locator(f"#{tab.elem_id('enabled')}").first.screenshot(path=Path(folder) / f"{name}.png")


def test_a_newcomer(client, baseline, tab, stock_picture):
    assert_same(tab.generate(), stock_picture)
    shot(tab, "1-closed")
    tab.switch(True, "enabled")
    before = tab.settings()
    assert "20 steps" in tab.planned()
    shot(tab, "2-open")

    tab.preset("fastest")
    plan = tab.planned("cached")
    assert plan.startswith("20 steps; 7 full and 13 cached; guidance off after step 15; about ")
    assert tab.settings().preset == "fastest"
    assert "proposed: 30 steps" in tab.text("proposal")
    shot(tab, "3-preset")
    assert browser.number(tab.page, "txt2img_steps") == 20  # nothing changes by itself

    client.watch()
    picture = tab.generate()
    calls = client.calls()
    assert len(calls) == 20
    assert rows(calls) == 15 * 2 + 5
    assert 'SDXL Optim result: "20 calls, 35 of 40 rows, 7 full and 13 cached"' in picture.infotext
    assert "SDXL Optim preset: fastest" in picture.infotext
    assert not np.array_equal(picture.pixels, stock_picture.pixels)
    assert "base: 20 calls, 35 of 40 rows, 7 full and 13 cached" in tab.report()
    assert "the last stock run of this size took" in tab.report()
    assert "with 20 steps of Euler" in tab.report()
    shot(tab, "4-report")

    tab.page.click(f"#{tab.elem_id('take')}")
    assert "30 steps; 10 full and 20 cached; guidance off after step 22" in tab.planned("30 steps")
    assert browser.number(tab.page, "txt2img_steps") == 30
    assert not tab.page.locator(f"#{tab.elem_id('take')}").is_visible()
    browser.set_number(tab.page, "txt2img_steps", 20)

    tab.page.click(f"#{tab.elem_id('preset_undo')}")
    tab.planned()
    assert tab.settings() == before
    tab.off()
    assert_same(tab.generate(), stock_picture)
    assert tab.report() == ""
    client.post("/probe/off")
    assert client.state() == baseline


def test_the_page_says_what_was_changed(tab):
    tab.switch(True, "enabled")
    tab.preset("fastest")
    browser.set_number(tab.page, tab.elem_id("deepcache", "cache_interval"), 5)
    assert "preset note: fastest has DeepCache interval 3; 5 is used, as set" in tab.planned("as set")
    assert "SDXL Optim notes" in tab.generate().infotext
    tab.page.click(f"#{tab.elem_id('preset_undo')}")
    tab.off()


def test_the_plan_on_the_page_is_that_of_the_api(client, tab):
    tab.set({"deepcache": {"enabled": True, "mode": "nonuniform"}, "cfg_cutoff": {"enabled": True, "stop": 0.4}})
    for sampler in ("Heun", "DPM++ 2M", "DDIM", "DPM adaptive"):
        browser.choose(tab.page, "txt2img_sampling", sampler)
        request = {**SMALL, "steps": 20, "sampler_name": sampler}
        settings = {"deepcache": {"enabled": True, "mode": "nonuniform"}, "cfg_cutoff": {"enabled": True, "stop": 0.4}}
        told = client.post("/sdxl-optim/plan", request=request, settings=settings)
        expected = "".join([*told["lines"], *told["notes"]])
        assert tab.planned(told["lines"][0]) == expected
    browser.choose(tab.page, "txt2img_sampling", "Euler")
    tab.off()
    assert tab.text("plan") == "" or (tab.page.wait_for_timeout(1500) is None and tab.text("plan") == "")


@pytest.mark.parametrize("name", NAMES)
def test_every_preset_generates_and_its_report_is_its_plan(case, name):
    request = {**SMALLER, "steps": presets.known.find(name).steps}
    told = case.post("/sdxl-optim/plan", request=request, settings={"preset": name})["passes"]["base"]
    picture = case.txt2img({"preset": name}, **request)[0]
    report = reported(picture)[0]
    assert report["unplanned"] is None
    assert case.passes[0].__dict__ == {key: told[key] for key in ("calls", "rows", "full", "cached")}
    assert (int(report["calls"]), int(report["rows"])) == (told["calls"], told["rows"])
    assert f"SDXL Optim preset: {name}" in picture.infotext


# --- one's own


def presets_file(webui) -> Path:
    return webui.data / "sdxl_optim_presets.json"


def chosen(tab) -> str:
    """The preset in the row; one's own are known to the server alone."""
    return tab.page.locator(f"#{tab.elem_id('preset')} input:checked").get_attribute("value")


def press(tab, name: str) -> str:
    tab.page.click(f"#{tab.elem_id(f'preset_{name}')}")
    tab.settle()
    tab.page.wait_for_timeout(300)
    return tab.text("preset_answer")


def test_own_presets_through_the_page(client, webui, tab, tmp_path):
    tab.set({"deepcache": {"enabled": True, "cache_interval": 4}})
    browser.open_accordion(tab.page, tab.elem_id("own_presets"))
    browser.set_text(tab.page, tab.elem_id("preset_name"), "evening")
    assert press(tab, "save") == "Saved."
    assert chosen(tab) == "evening"
    kept = json.loads(presets_file(webui).read_text("utf-8"))["presets"]
    assert kept["evening"]["settings"] == {"deepcache": {"enabled": True, "cache_interval": 4}}
    assert kept["evening"]["steps"] == 20
    picture = client.txt2img({"preset": "evening"}, **SMALLER)[0]
    assert "SDXL Optim DeepCache interval: 4" in picture.infotext

    browser.set_text(tab.page, tab.elem_id("preset_name"), "fast")
    assert "preset name" in press(tab, "save")
    browser.set_text(tab.page, tab.elem_id("preset_name"), "morning")
    assert press(tab, "rename") == "Renamed."
    assert press(tab, "export") == ""
    exported = presets_file(webui).read_bytes()
    file = {"name": "mine.json", "mimeType": "application/json", "buffer": exported}
    with tab.page.expect_file_chooser() as chooser:
        tab.page.click(f"#{tab.elem_id('preset_import')}")
    chooser.value.set_files(file)
    tab.settle()
    tab.page.wait_for_timeout(500)
    assert tab.text("preset_answer") == "Imported: morning 2"

    browser.reload_ui(tab.page, webui)  # the scripts are loaded anew
    tab.fill_in(steps=20)
    tab.switch(True, "enabled")
    tab.preset("morning 2")
    assert browser.number(tab.page, tab.elem_id("deepcache", "cache_interval")) == 4
    browser.open_accordion(tab.page, tab.elem_id("own_presets"))
    assert press(tab, "delete") == "Deleted."
    assert list(json.loads(presets_file(webui).read_text("utf-8"))["presets"]) == ["morning"]
    tab.page.click(f"#{tab.elem_id('preset_undo')}")
    tab.off()


def shown(tab) -> list[str]:
    tab.page.wait_for_timeout(1000)
    return tab.page.locator(f"#{tab.elem_id('preset')} input").evaluate_all("all => all.map(one => one.value)")


def test_what_one_page_saves_and_deletes_the_others_show(webui, tab, open_page):
    """The other tab, another page, and the same one loaded anew."""
    image, other = Tab(tab.page, "img2img"), Tab(open_page(webui))
    other.fill_in(steps=20)
    other.set({"deepcache": {"enabled": True, "cache_interval": 4}})
    browser.open_accordion(other.page, other.elem_id("own_presets"))
    browser.set_text(other.page, other.elem_id("preset_name"), "shared")
    assert press(other, "save") == "Saved."
    tab.switch(True, "enabled")
    assert "shared" in shown(tab)
    browser.show_tab(tab.page, "tab_img2img")
    image.switch(True, "enabled")
    assert "shared" in shown(image)
    browser.show_tab(tab.page, "tab_txt2img")
    tab.preset("shared")
    assert browser.number(tab.page, tab.elem_id("deepcache", "cache_interval")) == 4

    assert press(other, "delete") == "Deleted."
    assert "cached" in tab.generate().infotext  # what it filled is there all the same
    assert "shared" not in shown(tab)
    assert chosen(tab) == presets.NONE
    other.page.reload()
    browser.wait_until_ready(other.page)
    other.switch(True, "enabled")
    assert "shared" not in shown(other)
    browser.show_tab(tab.page, "tab_img2img")
    image.off()
    browser.show_tab(tab.page, "tab_txt2img")
    tab.page.click(f"#{tab.elem_id('preset_undo')}")
    tab.off()


def test_a_broken_presets_file_is_set_aside(webui, tab):
    presets_file(webui).write_text("{torn", "utf-8")
    browser.reload_ui(tab.page, webui)
    tab.switch(True, "enabled")
    browser.open_accordion(tab.page, tab.elem_id("own_presets"))
    aside = [p for p in webui.data.iterdir() if p.name.startswith("sdxl_optim_presets.broken")]
    assert len(aside) == 1
    assert aside[0].read_text("utf-8") == "{torn"
    assert aside[0].name in tab.text("preset_answer")
    assert [p for p in NAMES if not tab.page.locator(f"#{tab.elem_id('preset')} input[value='{p}']").count()] == []
    assert tab.settings().preset is None
    presets_file(webui).unlink()
    browser.reload_ui(tab.page, webui)
    tab.fill_in(steps=20)
