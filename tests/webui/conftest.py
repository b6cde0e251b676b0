"""Live tests: each needs `SD_WEBUI_DIR` and is skipped without it."""

import contextlib
from pathlib import Path

import pytest

from . import live, server
from .client import Client


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.webui)


def running(**options):
    if server.webui_dir() is None:
        pytest.skip("SD_WEBUI_DIR is not set")
    with server.WebUI(**options) as webui:
        webui.client = Client(webui.url)
        # The host's first load of a model leaves it with other last digits than every later one, stock or not.
        wanted = {**server.SETTINGS, **(options.get("settings") or {})}["sd_model_checkpoint"]
        webui.client.txt2img(steps=1)  # a switch while the server still loads its first model can fail
        webui.client.options(sd_model_checkpoint="tiny-sd15.safetensors")
        webui.client.options(sd_model_checkpoint=wanted)
        yield webui


@pytest.fixture(scope="session")
def webui():
    """A server with this extension and the probe."""
    yield from running()


@pytest.fixture(scope="session")
def stock_webui():
    """The same server without this extension: where stock pictures come from."""
    yield from running(extensions=[server.PROBE])


@pytest.fixture
def client(webui):
    """The server's API. Nothing of the probe's is left armed for the next test."""
    yield webui.client
    webui.client.post("/probe/off")


@pytest.fixture(scope="session")
def playwright():
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        yield playwright


@pytest.fixture
def open_page(playwright):
    """`open_page(webui, theme=…, width=…)`: its page in Chromium, closed at the end of the test."""
    from . import browser

    if browser.chromium() is None:
        pytest.skip("no chromium on the path, and CHROMIUM is not set")
    with contextlib.ExitStack() as pages:
        yield lambda webui, **look: pages.enter_context(browser.opened(playwright, webui.url, **look))


@pytest.fixture
def stock(stock_webui):
    yield stock_webui.client
    stock_webui.client.post("/probe/off")


@pytest.fixture(scope="session")
def stock_pictures(stock_webui):
    """Stock pictures by request, each made once."""
    return live.Stock(stock_webui.client)


@pytest.fixture(scope="session")
def baseline(webui):
    """What /probe/state lists before the extension was ever switched on."""
    webui.client.txt2img(steps=2)
    return webui.client.state()


@pytest.fixture
def case(webui, stock_pictures, baseline):
    """The extension's server. At each test's end its stock pictures must be what they were, and nothing be left."""
    case = live.Case(webui.url, stock_pictures, baseline)
    yield case
    case.finish()
