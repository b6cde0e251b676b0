"""The page is driven as a person would, and its Generate button makes what the API makes."""

import numpy as np
import pytest

pytest.importorskip("playwright")

from . import browser
from .client import REQUEST, decoded


def fill_in(page, **more):
    """The client's usual request, typed into txt2img."""
    browser.set_text(page, "txt2img_prompt", REQUEST["prompt"])
    browser.set_text(page, "txt2img_neg_prompt", REQUEST["negative_prompt"])
    browser.choose(page, "txt2img_sampling", REQUEST["sampler_name"])
    for name in ("steps", "width", "height", "cfg_scale", "seed"):
        browser.set_number(page, f"txt2img_{name}", {**REQUEST, **more}[name])


def test_generate_makes_the_apis_picture(stock, stock_webui, open_page):
    page = open_page(stock_webui)
    fill_in(page)
    infotext = browser.generate(page)
    by_api = stock.txt2img()[0]
    assert infotext == by_api.infotext.replace("CFG scale: 5.0", "CFG scale: 5")
    assert np.array_equal(browser.pictures(page)[0], by_api.pixels)


def test_an_input_accordion_is_ticked_by_opening_it(stock_webui, open_page):
    page = open_page(stock_webui)
    fill_in(page, steps=2)
    browser.open_accordion(page, "txt2img_hr")
    browser.set_number(page, "txt2img_hr_scale", 1.5)
    assert "Hires upscale: 1.5" in browser.generate(page)
    assert browser.pictures(page)[0].shape == (384, 384, 3)
    browser.set_checkbox(page, "txt2img_hr-visible-checkbox", False)
    assert browser.number(page, "txt2img_hr_scale") == 1.5
    assert "Hires" not in browser.generate(page)


def test_an_error_is_what_generate_returns(stock, stock_webui, open_page):
    page = open_page(stock_webui)
    fill_in(page, steps=2)
    stock.fault("unet")
    assert browser.generate(page) == "RuntimeError: probe fault: unet"
    assert "Steps: 2" in browser.generate(page)


def test_reload_ui_brings_the_page_back(stock_webui, open_page):
    page = open_page(stock_webui)
    browser.reload_ui(page, stock_webui)
    fill_in(page, steps=2)
    assert "Steps: 2" in browser.generate(page)


def test_the_theme_shows_in_a_screenshot(stock_webui, open_page, tmp_path):
    def brightness(theme):
        page = open_page(stock_webui, theme=theme, width=800)
        picture = decoded(browser.screenshot(page, "txt2img_settings", tmp_path / "shot.png").read_bytes())
        assert picture.shape[1] <= 800
        return picture.mean()

    assert brightness("dark") < 60 < 200 < brightness("light")
