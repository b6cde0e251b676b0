"""The WebUI's options, of which the real ones are tried in tests/webui/test_host_options.py."""

import importlib
import sys
from types import ModuleType, SimpleNamespace

import pytest


@pytest.fixture
def host_options(monkeypatch):
    opts = SimpleNamespace(data={"other": 1}, get_default={"sd_vae": "Automatic"}.get)
    package, shared = ModuleType("modules"), ModuleType("modules.shared")
    package.shared, shared.opts = shared, opts
    monkeypatch.setitem(sys.modules, "modules", package)
    monkeypatch.setitem(sys.modules, "modules.shared", shared)
    name = "sdxl_optim.host.webui.host_options"
    yield importlib.import_module(name)
    del sys.modules[name]


def test_what_the_host_shall_put_back_its_config_has(host_options):
    """Its `process_images` puts back the overridden options that are in `opts.data`, and leaves others as they are."""
    p = SimpleNamespace(override_settings={"other": 2})
    host_options.override(p, "sd_vae", "fp16-fix.safetensors")
    assert host_options.opts.data == {"other": 1, "sd_vae": "Automatic"}
    assert p.override_settings == {"other": 2, "sd_vae": "fp16-fix.safetensors"}
    host_options.opts.data["sd_vae"] = "mine"
    host_options.override(p, "sd_vae", "fp16-fix.safetensors")
    assert host_options.opts.data["sd_vae"] == "mine"
