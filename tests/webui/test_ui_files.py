"""Files beside the page: a tiny decoder copied in, and the user's own defaults. A server with folders of its own."""

import json
import shutil

import numpy as np
import pytest
import torch

pytest.importorskip("playwright")

from . import browser, server
from .accordion import SMALL, Tab, assert_same, by_api, ui_fields
from .client import Client

LABEL = "customscript/sdxl_optim.py/{tab}/{title}/value"
DEFAULTS = {"DeepCache interval": 5, "FreeU b1": 1.15, "VAE decoder": "tiny", "CFG cutoff stop": 0.6}
DECODER = "taesdxl_decoder.pth"


@pytest.fixture(scope="module")
def own_webui():
    """Its models folder has all checkpoints and no tiny decoder; its ui-config.json has defaults for txt2img."""
    if server.webui_dir() is None:
        pytest.skip("SD_WEBUI_DIR is not set")
    webui = server.WebUI()
    shutil.rmtree(webui.models / "VAE-taesd")
    saved = {LABEL.format(tab="txt2img", title=title): value for title, value in DEFAULTS.items()}
    (webui.data / "ui-config.json").write_text(json.dumps(saved))
    with webui:
        webui.decoder = webui.models / "VAE-taesd" / DECODER
        yield webui


@pytest.fixture(scope="module")
def tab(own_webui, playwright):
    with browser.opened(playwright, own_webui.url) as page:
        tab = Tab(page)
        tab.fill_in()
        yield tab


def test_each_control_has_an_entry_in_the_users_defaults(own_webui):
    config = json.loads((own_webui.data / "ui-config.json").read_text())
    for name in ("txt2img", "img2img"):
        keys = [LABEL.format(tab=name, title=field.title) for field in ui_fields()]
        assert len(set(keys)) == len(ui_fields())
        assert [key for key in keys if key not in config] == []
        prefix = LABEL.format(tab=name, title="").removesuffix("/value")
        ours = {key for key in config if key.startswith(prefix) and key.endswith("/value")}
        assert ours == set(keys)


def test_saved_defaults_are_used(tab):
    for field in ui_fields():
        expected = DEFAULTS.get(field.title, field.declaration.default)
        assert tab.value(field) == expected, field.name
        assert Tab(tab.page, "img2img").value(field) == field.declaration.default, field.name
    browser.open_accordion(tab.page, tab.elem_id("enabled"))
    tab.switch(True, "deepcache", "enabled")
    infotext = tab.generate().infotext
    assert "SDXL Optim DeepCache interval: 5" in infotext
    assert "3 full and 9 cached" in infotext


def copy(tab, path):
    """The answer under the field."""
    browser.open_accordion(tab.page, tab.elem_id("tiny_file_section"))
    browser.set_text(tab.page, tab.elem_id("tiny_file"), str(path))
    tab.page.click(f"#{tab.elem_id('tiny_file_copy')}")
    tab.settle()
    return tab.page.locator(f"#{tab.elem_id('tiny_file_answer')}").first.inner_text().strip()


def test_a_tiny_decoder_is_copied_in(own_webui, tab, stock_webui, tmp_path):
    tiny = {"vae": {"decoder": "tiny"}}
    tab.set(tiny)
    picture = tab.generate()
    refusal = f"Tiny VAE refused: {DECODER} is missing and could not be fetched"
    assert refusal in tab.report()
    assert refusal in picture.infotext
    assert "VAE Decoder" not in picture.infotext
    # Of this very server: on some processors another one's convolutions end in another last digit.
    own = Client(own_webui.url)
    stock_picture, elsewhere = (client.txt2img(**SMALL)[0] for client in (own, stock_webui.client))
    assert np.array_equal(picture.pixels, stock_picture.pixels)
    assert np.abs(picture.pixels.astype(int) - elsewhere.pixels).max() <= 1

    decoders = server.models_dir() / "VAE-taesd"
    for name, content in [("text.pth", b"no tensors"), ("empty.safetensors", b"")]:
        (tmp_path / name).write_bytes(content)
        assert f"{name} is not a TAESD decoder" in copy(tab, tmp_path / name)
    assert "taesdxl_encoder.pth is not a TAESD decoder" in copy(tab, decoders / "taesdxl_encoder.pth")
    assert copy(tab, tmp_path / "nowhere.pth") == f"There is no file {tmp_path / 'nowhere.pth'}."
    assert copy(tab, "") == "Name a file first."
    assert not own_webui.decoder.exists()

    good = tmp_path / "decoder from elsewhere.pth"
    good.write_bytes((decoders / DECODER).read_bytes())
    assert copy(tab, f'"{good}"') == f"Copied to {own_webui.decoder}."
    wrote, given = (torch.load(file, weights_only=True) for file in (own_webui.decoder, good))
    assert all(torch.equal(wrote[key], given[key]) for key in given)
    picture = tab.generate()
    assert "decoded by TAESD" in tab.report()
    assert_same(picture, by_api(own.txt2img(tiny, **SMALL)[0]))

    tab.off()
    assert_same(tab.generate(), by_api(stock_picture))
    assert own.state()["options"].get("sd_vae_decode_method", "Full") == "Full"
