"""Live tests: each needs `SD_WEBUI_DIR` and is skipped without it."""

from pathlib import Path

import pytest

from . import server
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


@pytest.fixture
def stock(stock_webui):
    yield stock_webui.client
    stock_webui.client.post("/probe/off")
