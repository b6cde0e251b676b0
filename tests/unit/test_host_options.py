"""The WebUI's options, of which the real ones are tried in tests/webui/test_host_options.py."""

import importlib
import sys
from types import ModuleType, SimpleNamespace

import pytest


class Options:
    frozen = ()

    def __init__(self):
        self.__dict__["data"] = {"other": 1}

    def __setattr__(self, name, value):
        assert name not in self.frozen
        if name in ("data", "save"):
            super().__setattr__(name, value)
        else:
            self.data[name] = value

    def save(self, filename): ...

    def get_default(self, name):
        return {"sd_vae": "Automatic"}[name]


@pytest.fixture
def host_options(monkeypatch):
    opts = Options()
    package, shared = ModuleType("modules"), ModuleType("modules.shared")
    package.shared, shared.opts = shared, opts
    monkeypatch.setitem(sys.modules, "modules", package)
    monkeypatch.setitem(sys.modules, "modules.shared", shared)
    name = "sdxl_optim.hosts.webui.host_options"
    yield importlib.import_module(name)
    del sys.modules[name]


def test_one_inside_another(host_options, monkeypatch):
    """As of a generation inside a generation; what is saved meanwhile is the user's."""
    saved, opts = [], host_options.opts
    monkeypatch.setattr(Options, "save", lambda self, filename: saved.append(self.data))
    for user in ({"other": 1}, {"other": 1, "decoder": "Full"}):
        opts.data.clear()
        opts.data.update(user)
        held = host_options.HostOptions().held
        with held("decoder", "TAESD"), held("decoder", "TAESD"):
            with held("decoder", "Approx NN"):
                assert opts.data["decoder"] == "Approx NN"
                opts.save("config.json")
            assert opts.data["decoder"] == "TAESD"
        assert opts.data == saved.pop() == user


def test_what_the_host_shall_put_back_its_config_has(host_options):
    """Its `process_images` puts back the overridden options that are in `opts.data`, and leaves others as they are."""
    p = SimpleNamespace(override_settings={"other": 2})
    host_options.override(p, "sd_vae", "fp16-fix.safetensors")
    assert host_options.opts.data == {"other": 1, "sd_vae": "Automatic"}
    assert p.override_settings == {"other": 2, "sd_vae": "fp16-fix.safetensors"}
    host_options.opts.data["sd_vae"] = "mine"
    host_options.override(p, "sd_vae", "fp16-fix.safetensors")
    assert host_options.opts.data["sd_vae"] == "mine"


def test_a_frozen_setting_is_left_alone(host_options, monkeypatch):
    """The host would end the request."""
    monkeypatch.setattr(Options, "frozen", ("sd_vae",))
    p = SimpleNamespace(override_settings={})
    host_options.override(p, "sd_vae", "fp16-fix.safetensors")
    assert p.override_settings == {}
