"""An X/Y/Z plot of ours through the page: its report, and its axes pasted back from its infotext."""

import json

import numpy as np
import pytest

pytest.importorskip("playwright")

from . import browser
from .accordion import Tab
from .live import reported
from .plot import PREFIX, in_order, results_of, row_of

PLOT = "script_txt2img_xyz_plot"
X = (f"{PREFIX}DeepCache interval", "off, 2, 4")
Y = (f"{PREFIX}CFG cutoff stop", "off, 0.5, 0.75")
Z = (f"{PREFIX}FreeU", "off, on")


@pytest.fixture
def tab(webui, open_page):
    tab = Tab(open_page(webui))
    tab.fill_in(seed=5)
    return tab


def choose_axis(tab, letter, axis):
    name, values = axis
    browser.choose(tab.page, f"{PLOT}_{letter}_type", name)
    tab.settle()
    browser.set_text(tab.page, f"{PLOT}_{letter}_values", values)


def chosen_axis(tab, letter):
    name = tab.page.locator(f"#{PLOT}_{letter}_type input").first.input_value()
    return name, tab.page.locator(f"#{PLOT}_{letter}_values textarea").input_value()


def test_the_report_agrees_with_the_plot_and_its_infotext_brings_the_axes_back(webui, tab):
    browser.choose(tab.page, "script_list", "X/Y/Z plot")
    tab.settle()
    browser.set_checkbox(tab.page, f"{PLOT}_csv_mode", True)
    browser.set_checkbox(tab.page, f"{PLOT}_include_lone_images", True)
    for letter, axis in zip("xyz", (X, Y, Z), strict=True):
        choose_axis(tab, letter, axis)
    before = len(results_of(webui))
    tab.generate()
    info = json.loads(tab.page.locator("#generation_info_txt2img textarea").input_value())
    first = info["index_of_first_image"]
    cells = list(zip(browser.pictures(tab.page)[first:], info["infotexts"][first:], strict=True))

    assert len(results_of(webui)) == before + 1
    results = results_of(webui)[0]
    rows = results.rows()
    assert len(rows) == len(cells) == 18
    for axes, (pixels, infotext) in zip(in_order(X, Y, Z), cells, strict=True):
        row = row_of(rows, axes)
        assert np.array_equal(np.asarray(results.picture(row.picture)), pixels)
        if row.stock:
            assert "SDXL Optim" not in infotext.split("Script:")[0]
        else:
            facts = reported(type("Cell", (), {"infotext": infotext}))[0]
            assert (row.rows, row.stock_rows) == (int(facts["rows"]), 24)

    page = tab.page
    page.reload()
    browser.wait_until_ready(page)
    browser.set_text(page, "txt2img_prompt", info["infotexts"][0])
    page.click("#txt2img_tools #paste")
    page.wait_for_function(f"document.querySelector('#{PLOT}_x_type input').value.includes('DeepCache')")
    tab.settle()
    assert [chosen_axis(tab, letter)[0] for letter in "xyz"] == [X[0], Y[0], Z[0]]
    assert [chosen_axis(tab, letter)[1] for letter in "xy"] == [X[1], Y[1]]
    fixed = page.locator("#script_txt2img_xyz_plot_z_type").locator("xpath=ancestor::*[contains(@class,'form')][1]")
    assert Z[1] in chosen_axis(tab, "z")[1] or {"off", "on"} <= set(fixed.inner_text().split())
