"""The rest of the page: the ✨ button, Reload UI, two pages, the X/Y/Z plot."""

import json

import numpy as np
import pytest

pytest.importorskip("playwright")

from . import browser
from .accordion import SMALL, STEPS, Tab, assert_same, by_api, ui_fields
from .client import rows

CUTOFF = {"cfg_cutoff": {"enabled": True, "stop": 0.5}}


@pytest.fixture(scope="module")
def stock_picture(stock_webui):
    return by_api(stock_webui.client.txt2img(**SMALL)[0])


@pytest.fixture(scope="module")
def tab(webui, playwright):
    with browser.opened(playwright, webui.url) as page:
        tab = Tab(page)
        tab.fill_in()
        yield tab


# --- ✨


def upscale(tab):
    tab.page.click("#txt2img_upscale")
    browser.wait_until_generated(tab.page)
    tab.settle()
    return browser.pictures(tab.page)[0]


def test_the_gallerys_upscale_button(client, tab, stock_picture):
    browser.open_accordion(tab.page, "txt2img_hr")
    browser.set_number(tab.page, "txt2img_hr_scale", 1.5)
    browser.set_checkbox(tab.page, "txt2img_hr-visible-checkbox", False)
    assert_same(tab.generate(), stock_picture)
    client.watch()
    stock = upscale(tab)
    n = len(client.calls())
    assert stock.shape == (192, 192, 3)

    own = {"cfg_cutoff": {"enabled": True, "stop": 0.25}}
    for hires, kept in [("same", n // 2), ("off", n), (own, n // 4)]:
        tab.off()
        tab.generate()
        tab.set({**CUTOFF, "hires": hires})
        client.calls()
        picture = upscale(tab)
        calls = client.calls()
        assert len(calls) == n
        assert rows(calls) == n + kept, hires
        assert f"hires: {n} calls, {n + kept} of {2 * n} rows" in tab.report()
        assert np.array_equal(picture, stock) == (hires == "off")
    tab.off()
    assert_same(tab.generate(), stock_picture)
    assert np.array_equal(upscale(tab), stock)
    assert tab.report() == ""


# --- Reload UI


def test_reload_ui(client, webui, baseline, stock_picture, tab):
    client.post("/probe/off")
    axes = xyz_axes(tab)
    assert len(axes) == len(set(axes)) >= len(ui_fields())
    for _ in range(2):
        browser.reload_ui(tab.page, webui)
        tab.fill_in()
        tab.set({**CUTOFF, "deepcache": {"enabled": True}, "freeu": {"enabled": True}})
        client.watch()
        picture = tab.generate()
        assert rows(client.calls()) == 18
        assert 'SDXL Optim result: "12 calls, 18 of 24 rows, 4 full and 8 cached, FreeU in 4"' in picture.infotext
        assert "18 of 24 rows" in tab.report()
        tab.off()
        assert_same(tab.generate(), stock_picture)
        client.post("/probe/off")
        assert client.state() == baseline
    assert xyz_axes(tab) == axes


# --- two pages


def test_two_pages_in_turn_and_at_once(webui, tab, stock_picture, open_page):
    one, other = tab, Tab(open_page(webui))
    other.fill_in()
    one.set(CUTOFF)
    other.set({"deepcache": {"enabled": True}})
    results = {one: "12 calls, 18 of 24 rows", other: "12 calls, 24 of 24 rows, 4 full and 8 cached"}
    for _ in range(2):
        for tab, result in results.items():
            assert f'SDXL Optim result: "{result}"' in tab.generate().infotext
            assert f"base: {result}" in tab.report()
    for tab in results:
        browser.set_number(tab.page, "txt2img_steps", 30)  # long enough for both to press the button
        tab.page.click("#txt2img_generate")
    for tab, result in zip(results, ("30 calls, 45 of 60 rows", "30 calls, 60 of 60 rows, 10 full"), strict=True):
        browser.wait_until_generated(tab.page)
        tab.settle()
        assert result in tab.page.inner_text("#html_info_txt2img p")
        assert result in tab.report()
    for tab in results:
        browser.set_number(tab.page, "txt2img_steps", STEPS)
    other.off()
    assert_same(other.generate(), stock_picture)
    assert "18 of 24 rows" in one.generate().infotext
    one.off()
    assert_same(one.generate(), stock_picture)


# --- X/Y/Z plot


def xyz_axes(tab):
    """Our axes in the list."""
    open_plot(tab)
    tab.page.locator("#script_txt2img_xyz_plot_x_type input").click()
    labels = tab.page.locator("#script_txt2img_xyz_plot_x_type ul.options li").all_inner_texts()
    tab.page.keyboard.press("Escape")
    browser.choose(tab.page, "script_list", "None")
    return [label.removeprefix("✓").strip() for label in labels if "[SDXL Optim]" in label]


def open_plot(tab):
    browser.choose(tab.page, "script_list", "X/Y/Z plot")
    tab.settle()
    tab.page.wait_for_selector("#script_txt2img_xyz_plot_x_type", state="visible")


def axis(tab, which, name, values):
    browser.choose(tab.page, f"script_txt2img_xyz_plot_{which}_type", f"[SDXL Optim] {name}")
    tab.settle()
    if values is None:  # all that its dropdown offers
        tab.page.click(f"#xyz_grid_fill_{which}_tool_button")
        tab.settle()
    else:
        browser.set_text(tab.page, f"script_txt2img_xyz_plot_{which}_values", values)


def test_xyz_plot(client, tab, stock_picture):
    tab.set({"freeu": {"enabled": True, "b1": 1.1}})
    held = tab.settings()
    plain = tab.generate()
    tab.off()
    held_off = tab.settings()
    open_plot(tab)
    axis(tab, "x", "DeepCache interval", "off, 2, 3")
    axis(tab, "y", "CFG cutoff stop", "off, 0.5")
    axis(tab, "z", "FreeU", None)
    browser.set_checkbox(tab.page, "script_txt2img_xyz_plot_include_lone_images", True)
    client.watch()
    tab.generate()
    cells = xyz_cells(tab)
    calls = client.calls()
    assert len(cells) == 12
    assert rows(calls) == 6 * 24 + 6 * 18
    combinations = {}
    for picture, infotext in cells:
        interval = next((i for i in (2, 3) if {2: "6 full", 3: "4 full"}[i] in infotext), "off")
        cut, freeu = "18 of 24 rows" in infotext, "FreeU in " in infotext
        combinations[interval, cut, freeu] = picture
        assert ("SDXL Optim DeepCache: True" in infotext) == (interval != "off")
        assert ("SDXL Optim DeepCache interval: 2" in infotext) == (interval == 2)
        assert ("SDXL Optim CFG cutoff stop: 0.5" in infotext) == cut
        assert ("SDXL Optim FreeU: True" in infotext) == freeu
        if (interval, cut, freeu) == ("off", False, False):
            assert np.array_equal(picture, stock_picture.pixels)
            assert infotext.replace(", Script: X/Y/Z plot", "").split(", X Type")[0] in stock_picture.infotext
    assert len(combinations) == 12

    assert tab.settings() == held_off
    browser.choose(tab.page, "script_list", "None")
    assert_same(tab.generate(), stock_picture)
    tab.set({"freeu": {"enabled": True, "b1": 1.1}})
    assert tab.settings() == held
    assert_same(tab.generate(), plain)
    tab.off()


def xyz_cells(tab):
    """(picture, infotext) of each cell: what the gallery shows after the grids."""
    info = json.loads(tab.page.locator("#generation_info_txt2img textarea").input_value())
    shown = browser.pictures(tab.page)
    first = info["index_of_first_image"]
    return list(zip(shown[first:], info["infotexts"][first:], strict=True))


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("DeepCache interval", "2, 11", ("DeepCache interval", "11", "an integer from 1 to 10, or off")),
        ("CFG cutoff stop", "0.5, half", ("CFG cutoff stop", "half", "a number from 0 to 1, or off")),
    ],
)
def test_xyz_plot_refuses_a_wrong_value_before_the_first_cell(client, tab, stock_picture, name, values, words):
    open_plot(tab)
    axis(tab, "x", name, values)
    client.watch()
    error = tab.generate().infotext
    assert [word for word in words if word not in error] == []
    assert client.calls() == []
    browser.choose(tab.page, "script_list", "None")
    assert_same(tab.generate(), stock_picture)
