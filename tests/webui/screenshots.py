"""The README's pictures of the accordion: `python tests/webui/screenshots.py OUT_DIR`, with SD_WEBUI_DIR set.

accordion-{closed,open}-…, report-…; each …-{light,dark}-{1280,800}.png
"""

import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.webui import browser, server
from tests.webui.accordion import Tab

COLORS = 64  # a palette: flat areas and a few grey edges need no more


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with server.WebUI(extensions=[server.EXTENSION]) as webui, sync_playwright() as playwright:
        for theme in ("light", "dark"):
            for width in (1280, 800):
                with browser.opened(playwright, webui.url, theme, width, height=1400) as page:
                    take(Tab(page), folder, f"{theme}-{width}.png")


def take(tab: Tab, folder: Path, name: str) -> None:
    whole = tab.elem_id("enabled")
    shot(tab, whole, folder / f"accordion-closed-{name}")
    tab.fill_in(steps=30)
    tab.switch(True, "enabled")
    tab.preset("fastest")
    tab.planned("cached")
    tab.page.mouse.move(0, 0)
    shot(tab, whole, folder / f"accordion-open-{name}")
    tab.generate()
    shot(tab, tab.elem_id("report"), folder / f"report-{name}")


def shot(tab: Tab, elem_id: str, path: Path) -> None:
    tab.page.wait_for_timeout(500)  # transitions
    element = tab.page.locator(f"#{elem_id}").first
    element.scroll_into_view_if_needed()
    element.screenshot(path=path, animations="disabled")
    Image.open(path).convert("RGB").quantize(COLORS, dither=Image.Dither.NONE).save(path, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
