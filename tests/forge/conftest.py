"""Live tests of the Forge family: skipped without `SD_FORGE_DIR` or `SD_REFORGE_DIR`."""

import contextlib
import tempfile
from pathlib import Path

import pytest

from .server import HOSTS, Forge


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.webui)


@pytest.fixture(scope="session", params=HOSTS)
def forge(request):
    """Each of the hosts with this extension and the probe. One server at a time: a full-size model takes 5 GB."""
    with Forge(request.param, "full-sd15", "full-sd15-b") as webui:
        yield webui


@pytest.fixture
def client(forge):
    yield forge.client
    forge.client.post("/probe/off")


@pytest.fixture(scope="session")
def playwright():
    sync_api = pytest.importorskip("playwright.sync_api")
    from webui import browser

    if browser.chromium() is None:
        pytest.skip("no chromium on the path, and CHROMIUM is not set")
    with sync_api.sync_playwright() as playwright:
        yield playwright


@pytest.fixture
def page(forge, playwright):
    """`browser.opened` waits for a quiet network, which Forge's page never has."""
    from webui import browser

    forge.client.txt2img(steps=1, width=64, height=64)  # Forge loads the model, which the plan needs, not before
    with tempfile.TemporaryDirectory() as profile:
        context = playwright.chromium.launch_persistent_context(
            profile, executable_path=browser.chromium(), args=browser.FLAGS, viewport={"width": 1280, "height": 1000}
        )
        with contextlib.closing(context):
            page = context.pages[0]
            page.set_default_timeout(browser.WAIT_MS)
            page.errors = []
            page.on("pageerror", lambda error: page.errors.append(str(error)))
            page.goto(f"{forge.url}/?__theme=light")
            page.wait_for_selector("#txt2img_generate", state="visible")
            page.wait_for_function("document.querySelector('.sdxl-optim-help[data-done]') !== null")
            page.wait_for_timeout(2000)
            yield page
