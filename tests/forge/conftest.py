"""Live tests of the Forge family: skipped without `SD_FORGE_DIR` or `SD_REFORGE_DIR`."""

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
    with Forge(request.param) as webui:
        yield webui


@pytest.fixture
def client(forge):
    yield forge.client
    forge.client.post("/probe/off")
