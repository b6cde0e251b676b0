"""The README's pictures of measuring: `python tests/webui/screenshots_measuring.py OUT_DIR`, with SD_WEBUI_DIR set.

xyz-plot.png, xyz-report.png, bench-tab-running.png and bench-tab.png: the demo model on this machine.
"""

import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from demo_model.export import NAME, write_webui
from tests.webui import browser, server
from tests.webui.bench_tab import BenchTab
from tests.webui.client import Client
from tests.webui.plot import PREFIX, plot, results_of

REQUEST = {"width": 256, "height": 256, "steps": 30, "cfg_scale": 5, "sampler_name": "Euler"}
CASES = "freeu\ncutoff 0.75\ndeepcache 3\ntiny\nfreeu+cutoff 0.75+deepcache 3+tiny"
PROMPTS = (
    "5: a large red circle in the center\n"
    "6: a blue square on the left and a yellow star on the right\n"
    "7: a small green triangle above a purple circle"
)
COLORS = 256


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as models:
        (Path(models) / "modules").mkdir()
        (Path(models) / "models").mkdir()
        write_webui(Path(models))
        options = {"extensions": [server.EXTENSION], "flags": ("--models-dir", Path(models) / "models")}
        settings = {"sd_model_checkpoint": f"{NAME}.safetensors"}
        with server.WebUI(**options, settings=settings) as webui, sync_playwright() as playwright:
            webui.client = Client(webui.url)
            webui.client.txt2img(**REQUEST, prompt="a red circle")
            take_plot(webui, folder)
            with browser.opened(playwright, webui.url, width=1000, height=1400) as page:
                take_report(page, webui, folder / "xyz-report.png")
                take_tab(BenchTab(page), folder)


def take_plot(webui, folder: Path) -> None:
    axes = [("DeepCache interval", "off, 2, 4"), ("CFG cutoff stop", "off, 0.5, 0.75"), ("FreeU", "off, on")]
    x, y, z = ((PREFIX + name, values) for name, values in axes)
    prompt = "a blue square on the left and a yellow star on the right"
    made = plot(webui.client, x, y, z, **REQUEST, prompt=prompt, seed=6)
    picture = Image.fromarray(made.grid)
    save(picture.resize((1200, 1200 * picture.height // picture.width)), folder / "xyz-plot.png")


def take_report(page: Page, webui, path: Path) -> None:
    """The upper part of the report beside the plot."""
    shown = page.context.new_page()
    shown.set_viewport_size({"width": 1000, "height": 2200})
    shown.goto((results_of(webui)[0].folder / "report.html").as_uri())
    shown.screenshot(path=path)
    save(Image.open(path), path)
    shown.close()


def take_tab(tab: BenchTab, folder: Path) -> None:
    tab.fill_in(CASES, PROMPTS, steps=30, width=256, height=256, warm_up=1)
    tab.press("start")
    tab.wait_for("table", "deepcache 3", seconds=600)
    shoot(tab.page, folder / "bench-tab-running.png")
    tab.wait_for("status", "Finished", seconds=900)
    shoot(tab.page, folder / "bench-tab.png")


def shoot(page: Page, path: Path) -> None:
    page.mouse.move(0, 0)
    page.wait_for_timeout(1500)  # pictures and transitions
    page.locator("#tab_sdxl_optim").screenshot(path=path, animations="disabled")
    save(Image.open(path), path)


def save(picture: Image.Image, path: Path) -> None:
    picture.convert("RGB").quantize(COLORS, dither=Image.Dither.NONE).save(path, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
