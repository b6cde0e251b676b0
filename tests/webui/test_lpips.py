"""LPIPS as the tab offers it: the package by pip, weights that can't be fetched, and the numbers once both are there.

The package is a wheel made here with a stand-in for its network. Pip takes it from a folder and installs it into
another, so that the WebUI's own environment stays as it is.
"""

import zipfile

import numpy as np
import pytest

pytest.importorskip("playwright")

from sdxl_optim.bench.perceptual import WEIGHTS

from . import browser, server
from .conftest import running
from .plot import PREFIX, plot, results_of
from .test_xyz_report import SMALL

ID = "sdxl_optim_bench"
CODE = """
import torch

class LPIPS(torch.nn.Module):
    def __init__(self, net, verbose):
        super().__init__()

    def forward(self, a, b):
        return (a - b).abs().mean()
"""
METADATA = {
    "METADATA": "Metadata-Version: 2.1\nName: lpips\nVersion: 0.1.4\nRequires-Dist: nothing-of-the-kind\n",
    "WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    "RECORD": "",
}
NOWHERE = "http://127.0.0.1:9"  # a proxy that never answers


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lpips")
    (folder / "wheels").mkdir()
    with zipfile.ZipFile(folder / "wheels" / "lpips-0.1.4-py3-none-any.whl", "w") as wheel:
        wheel.writestr("lpips/__init__.py", CODE)
        for name, content in METADATA.items():
            wheel.writestr(f"lpips-0.1.4.dist-info/{name}", content)
    return folder


@pytest.fixture(scope="module")
def own(folder):
    """A server that has no lpips and no weights, and can fetch nothing."""
    if server.webui_dir() is None:
        pytest.skip("SD_WEBUI_DIR is not set")
    environment = {
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": folder / "wheels",
        "PIP_TARGET": folder / "packages",
        "PYTHONPATH": folder / "packages",
        "TORCH_HOME": folder / "torch",
        "https_proxy": NOWHERE,
        "HTTPS_PROXY": NOWHERE,
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, str(value))
        yield from running()


def test_installed_on_request_and_used_once_its_weights_are_there(own, folder, open_page):
    page = open_page(own, width=1400, height=1600)
    browser.show_tab(page, "tab_sdxl_optim")
    button, line = page.locator(f"#{ID}_lpips_get"), page.locator(f"#{ID}_lpips").first
    assert "LPIPS is missing: it takes the package lpips" in line.inner_text()
    assert button.inner_text() == "Install the package lpips"

    button.click()
    page.wait_for_function(f"document.getElementById('{ID}_lpips_get').innerText.startsWith('Fetch')")
    assert (folder / "packages" / "lpips").is_dir()
    assert f"AlexNet's weights ({WEIGHTS}, 233 MB) are not in torch's checkpoints folder" in line.inner_text()

    button.click()
    page.wait_for_function(f"document.getElementById('{ID}_lpips').innerText.includes('could not be fetched')")
    assert f"Put the file into {folder / 'torch' / 'hub' / 'checkpoints'}." in line.inner_text()
    plot(own.client, (f"{PREFIX}FreeU", "off, on"), **SMALL)
    results = results_of(own)[0]
    assert [row.lpips for row in results.rows()] == [None, None]
    assert "LPIPS is missing: AlexNet" in (results.folder / "report.html").read_text("utf-8")

    (folder / "torch" / "hub" / "checkpoints" / WEIGHTS).write_bytes(b"weights")
    button.click()
    page.wait_for_function(f"document.getElementById('{ID}_lpips').innerText.includes('at hand')")
    assert not button.is_visible()
    page.click(f"#{ID}_refresh")
    page.wait_for_function(f"document.getElementById('{ID}_table').innerText.includes('LPIPS')")
    a, b = (np.asarray(results.picture(row.picture), dtype=float) for row in results.rows())
    assert [row.lpips for row in results.rows()] == pytest.approx([0, np.abs(a - b).mean() / 127.5], abs=1e-4)
    assert "LPIPS is missing" not in (results.folder / "report.html").read_text("utf-8")
