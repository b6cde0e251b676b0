"""The WebUI's page in headless Chromium.

`CHROMIUM` names the browser's program (default: `chromium` on the path). Components are found by the elem_id
that their declaration gives them.
"""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from playwright.sync_api import Locator, Page, Playwright

from .client import decoded

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
WAIT_MS = 60_000


def chromium() -> str | None:
    return os.environ.get("CHROMIUM") or shutil.which("chromium")


@contextlib.contextmanager
def opened(
    playwright: Playwright, url: str, theme: str = "light", width: int = 1280, height: int = 1000
) -> Iterator[Page]:
    """A page with the WebUI at `url`, ready to be used, in a browser with an empty profile.

    `playwright` comes from `sync_playwright()`, of which a process can hold one at a time.
    """
    with tempfile.TemporaryDirectory() as profile:
        size = {"width": width, "height": height}
        context = playwright.chromium.launch_persistent_context(
            profile, executable_path=chromium(), args=FLAGS, viewport=size
        )
        page = context.pages[0]
        page.set_default_timeout(WAIT_MS)
        page.goto(f"{url}/?__theme={theme}")
        wait_until_ready(page)
        yield page
        context.close()


def wait_until_ready(page: Page) -> None:
    """Until the page's own scripts have run: the host shows the prompt's token count last."""
    page.wait_for_selector("#txt2img_generate", state="visible")
    counted = "document.querySelector('#txt2img_token_counter span')?.textContent.includes('/')"
    page.wait_for_function(counted)
    page.wait_for_load_state("networkidle")


def reload_ui(page: Page, webui) -> None:
    """Press Settings → Reload UI, and wait for the new page."""
    before = webui.starts()

    def answer(route):  # the page asks whether the server is back, and can crash it by asking too early
        route.continue_() if webui.starts() > before else route.abort()

    page.route("**/internal/ping", answer)
    show_tab(page, "tab_settings")
    page.evaluate("window.before_reload = true")
    page.click("#settings_restart_gradio")
    page.wait_for_function("window.before_reload === undefined")
    wait_until_ready(page)
    page.unroute("**/internal/ping")


def show_tab(page: Page, tab: str) -> None:
    """`tab_txt2img`, `tab_img2img`, `tab_settings`, …"""
    label = page.locator(f"#{tab}").evaluate("tab => [...tab.parentNode.children].indexOf(tab) - 1")
    page.locator("#tabs > .tab-nav > button").nth(label).click()
    page.wait_for_selector(f"#{tab}", state="visible")


def open_accordion(page: Page, elem_id: str) -> Locator:
    """Open an Accordion or InputAccordion. That ticks the latter too, until its box is clicked by hand."""
    accordion = page.locator(f"#{elem_id}")
    header = accordion.locator(".label-wrap").first
    if "open" not in (header.get_attribute("class") or "").split():
        header.locator(".icon").click()
        page.wait_for_function("header => header.classList.contains('open')", arg=header.element_handle())
    return accordion


def set_checkbox(page: Page, elem_id: str, checked: bool) -> None:
    """A Checkbox; for an InputAccordion give `<elem_id>-visible-checkbox`, the one in its header."""
    box = page.locator(f"input#{elem_id}, #{elem_id} input[type=checkbox]").first
    if box.is_checked() != checked:
        box.click()


def set_number(page: Page, elem_id: str, value: float) -> None:
    """A Slider or a Number, typed in."""
    field = page.locator(f"#{elem_id} input[type=number]").first
    field.fill(str(value))
    field.press("Tab")


def number(page: Page, elem_id: str) -> float:
    return float(page.locator(f"#{elem_id} input[type=number]").first.input_value())


def choose(page: Page, elem_id: str, choice: str) -> None:
    """A Dropdown."""
    page.locator(f"#{elem_id} input").first.click()
    page.locator(f'#{elem_id} ul.options li[aria-label="{choice}"]').click()


def choose_radio(page: Page, elem_id: str, choice: str) -> None:
    page.locator(f"#{elem_id} label").get_by_text(choice, exact=True).first.click()


def set_text(page: Page, elem_id: str, text: str) -> None:
    field = page.locator(f"#{elem_id} textarea, #{elem_id} input[type=text]").first
    field.fill(text)
    field.dispatch_event("change")


def generate(page: Page, tab: str = "txt2img") -> str:
    """Press Generate, wait for the end, and return the infotext shown under the gallery, or the error."""
    page.click(f"#{tab}_generate")
    wait_until_generated(page, tab)
    error = page.locator(f"#html_log_{tab} .error")
    return error.inner_text() if error.count() else page.locator(f"#html_info_{tab} p").inner_text()


def wait_until_generated(page: Page, tab: str = "txt2img") -> None:
    """Until the Generate button is back and the results are no longer dimmed."""
    page.wait_for_selector(f"#{tab}_interrupt", state="hidden")
    page.wait_for_selector(f"#html_info_{tab} > .wrap.translucent", state="detached")


def pictures(page: Page, tab: str = "txt2img") -> list[np.ndarray]:
    """The pictures in the gallery, in full size, each as [H, W, 3] uint8."""
    images = page.locator(f"#{tab}_gallery img")
    sources = dict.fromkeys(image.get_attribute("src") for image in images.all())
    return [decoded(page.request.get(source).body()) for source in sources]


def screenshot(page: Page, elem_id: str, path: Path) -> Path:
    element = page.locator(f"#{elem_id}")
    element.scroll_into_view_if_needed()
    element.screenshot(path=path)
    return path
