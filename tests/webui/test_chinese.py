"""A Chinese session: no text of ours is left in English."""

import json
from pathlib import Path

import pytest

pytest.importorskip("playwright")

from . import browser, server
from .accordion import Tab
from .conftest import running

TRANSLATED = json.loads((Path(server.EXTENSION) / "localizations" / "zh_CN.json").read_text("utf-8"))
# All texts and hints below an element but what is the same in every language, what the user types, and gradio's own.
TEXTS = """root => {
    const same = '[translate=no], textarea, script, style, [data-testid=file], .file-preview';
    const own = n => !n.parentElement.closest(same);
    const walk = document.createTreeWalker(root, NodeFilter.SHOW_TEXT, n => own(n) ? 1 : 2);
    const found = [];
    while (walk.nextNode()) found.push(walk.currentNode.textContent.trim());
    return found.filter(text => /\\p{L}/u.test(text));
}"""
TITLES = "root => [...root.querySelectorAll('[title]')].map(e => e.title)"


@pytest.fixture(scope="module", params=["zh_CN", "zh-Hans"])
def chinese(request):
    yield from running(settings={"localization": request.param})


@pytest.fixture(scope="module")
def tab(chinese, playwright):
    with browser.opened(playwright, chinese.url) as page:
        tab = Tab(page)
        tab.fill_in(steps=20)
        tab.switch(True, "enabled")
        tab.planned()
        yield tab


def untranslated(tab, selector: str) -> list[str]:
    known = set(TRANSLATED.values())
    texts = tab.page.locator(selector).first.evaluate(TEXTS)
    assert texts
    return [text for text in texts if text not in known]


def accordion(tab) -> str:
    return f"#{tab.elem_id('enabled')}"


def test_the_accordion_and_its_hints(tab):
    assert untranslated(tab, accordion(tab)) == []
    titles = tab.page.locator(accordion(tab)).evaluate(TITLES)
    assert len(titles) > 20
    words = ("Fraction", "number", "integer", "Back", "true")
    assert [text for text in titles if any(word in text for word in words)] == []
    assert any("全部步数" in text for text in titles)


def test_a_preset_its_plan_and_the_report(tab):
    tab.preset("fastest")
    tab.planned("缓存")
    assert untranslated(tab, accordion(tab)) == []
    tab.fill_in(steps=8, prompt="a fox AND a hill", sampler_name="DPM++ 2M")
    tab.planned("已拒绝")
    assert untranslated(tab, accordion(tab)) == []
    tab.generate()
    assert "上次实际运行" in tab.report()
    assert untranslated(tab, accordion(tab)) == []
    tab.fill_in(sampler_name="DPM adaptive")
    tab.planned("至少")
    assert untranslated(tab, accordion(tab)) == []


def test_a_comparison_with_stock(tab):
    tab.fill_in(steps=13)
    tab.off()
    tab.generate()
    tab.switch(True, "enabled")
    tab.generate()
    assert "上次未优化运行用时" in tab.report()
    assert untranslated(tab, accordion(tab)) == []


def test_the_measuring_tab(tab):
    browser.show_tab(tab.page, "tab_sdxl_optim")
    tab.page.wait_for_timeout(500)
    assert untranslated(tab, "#tab_sdxl_optim") == []
    browser.show_tab(tab.page, "tab_txt2img")


def test_the_settings(tab):
    browser.show_tab(tab.page, "tab_settings")
    tab.page.locator("#settings_search input, #settings_search textarea").first.fill("")
    tab.page.locator("#settings > .tab-nav button", has_text=TRANSLATED["SDXL Optim"]).first.click()
    assert untranslated(tab, "#settings_sdxl_optim") == []
    browser.show_tab(tab.page, "tab_txt2img")
