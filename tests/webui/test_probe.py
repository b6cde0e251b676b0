"""The probe sees what it claims: without this, no test that relies on it says anything."""

import numpy as np
import pytest

from . import client as api
from .conftest import running
from .server import PROBE

PLANT = """
import torch
from modules import processing, script_callbacks, shared
from torch.nn.modules import module as torch_module

DECODE = processing.decode_latent_batch

def unet():
    return shared.sd_model.model.diffusion_model

def planted_hook(module, args):
    pass

def planted_forward(x, *args, **kwargs):
    block = unet().output_blocks[3]
    channels = block[0].out_layers[-1].out_channels
    return torch.zeros(x.shape[0], channels, *x.shape[2:])

def planted_function(*args, **kwargs):
    return DECODE(*args, **kwargs)

def plant():
    unet().register_forward_pre_hook(planted_hook)
    unet().output_blocks[3].forward = planted_forward
    unet().planted_attribute = 1
    shared.sd_model.planted_attribute = 1
    processing.StableDiffusionProcessing.planted_attribute = 1
    processing.decode_latent_batch = planted_function
    shared.opts.data["planted_option"] = 1
    torch.backends.cuda.matmul.allow_tf32 = True

def uproot():
    unet()._forward_pre_hooks.clear()
    del unet().output_blocks[3].forward, unet().planted_attribute, shared.sd_model.planted_attribute
    del processing.StableDiffusionProcessing.planted_attribute, shared.opts.data["planted_option"]
    processing.decode_latent_batch = DECODE
    torch.backends.cuda.matmul.allow_tf32 = False

def count():
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in shared.sd_model.modules())
    hooks += len(torch_module._global_forward_pre_hooks) + len(torch_module._global_forward_hooks)
    return {"hooks": hooks}

def on_app_started(_demo, app):
    app.post("/plant")(plant)
    app.post("/uproot")(uproot)
    app.get("/count")(count)

script_callbacks.on_app_started(on_app_started)
"""


@pytest.fixture(scope="module")
def planting_webui(tmp_path_factory):
    """A stock server with the probe and a third extension that misbehaves on request."""
    folder = tmp_path_factory.mktemp("extensions") / "planted"
    (folder / "scripts").mkdir(parents=True)
    (folder / "scripts" / "planted.py").write_text(PLANT)
    yield from running(extensions=[PROBE, folder])


@pytest.fixture
def client(planting_webui):
    yield planting_webui.client
    planting_webui.client.post("/probe/off")


def test_counts_twenty_full_calls_of_two_rows(client):
    leaves = client.watch()["block_leaves"]
    client.txt2img(steps=20)
    answer = client.get("/probe/calls")
    assert answer["passes"] == [{"hires": False, "steps": 20, "sampler": "Euler"}]
    shapes = [(call["rows"], call["height"], call["width"], call["context"]) for call in answer["calls"]]
    assert shapes == [(2, 32, 32, 77)] * 20
    assert all(call["blocks"] == leaves for call in answer["calls"])
    assert [call["denoiser_step"] for call in answer["calls"]] == list(range(20))
    sigmas = [call["sigma"] for call in answer["calls"]]
    assert sigmas == sorted(sigmas, reverse=True)
    assert client.calls() == []


def test_marks_the_hires_pass(client):
    client.watch()
    client.txt2img(steps=4, enable_hr=True, hr_scale=1.5, hr_upscaler="Latent")
    answer = client.get("/probe/calls")
    assert [a_pass["hires"] for a_pass in answer["passes"]] == [False, True]
    assert {(call["pass"], call["height"]) for call in answer["calls"]} == {(0, 32), (1, 48)}


def test_records_the_tensors_of_each_call(client, tmp_path):
    client.watch(record=str(tmp_path / "calls.pt"))
    client.txt2img(steps=3)
    assert len(client.calls()) == 3
    assert (tmp_path / "calls.pt").stat().st_size > 3 * 2 * 2 * 4 * 32 * 32 * 4


def test_lists_what_was_planted_and_nothing_else(client):
    before = client.state()
    assert "planted" not in str({**before, "callbacks": None})
    client.post("/plant")
    after = client.state()
    client.post("/uproot")
    changed = {key for key in after if after[key] != before[key]}
    assert changed == {"hooks", "shadows", "module_attributes", "model_attributes", "class_attributes",
                       "foreign_code", "options", "torch"}  # fmt: skip
    new_hooks = set(after["hooks"]) - set(before["hooks"])
    assert [hook.endswith(".planted_hook") for hook in new_hooks] == [True]
    assert "model.diffusion_model.output_blocks.3.forward" in after["shadows"]
    assert "modules.processing.decode_latent_batch" in after["foreign_code"]
    assert client.state() == before


def test_sees_a_block_that_was_skipped(client):
    client.watch()
    client.post("/plant")
    client.txt2img(steps=2)
    client.post("/uproot")
    assert all("output_blocks.3" not in call["blocks"] for call in client.calls())


def test_a_generation_leaves_the_state_as_it_was(client):
    client.txt2img(steps=2)
    before, weights = client.state(), client.get("/probe/checksum")
    client.watch()
    client.txt2img(steps=2)
    assert client.state() == before
    assert client.get("/probe/checksum") == weights
    assert set(weights["kinds"]) == {"torch.float32 cpu", "torch.int64 cpu"}


@pytest.mark.parametrize("where", ["unet", "vae", "conds", "hires"])
@pytest.mark.parametrize("kind", ["runtime", "oom"])
def test_a_fault_in_a_module_fails_the_request(client, where, kind):
    hires = {"enable_hr": True, "hr_scale": 1.5, "hr_upscaler": "Latent"} if where == "hires" else {}
    stock = client.txt2img(steps=3)[0]
    client.fault(where, kind)
    with pytest.raises(api.ApiError, match=f"probe fault: {where}"):
        client.txt2img(steps=3, prompt=f"another prompt for {where} {kind}", **hires)
    assert client.post("/probe/off") == {"unspent_faults": 0}
    assert api.same(client.txt2img(steps=3)[0], stock)


@pytest.mark.parametrize("where", ["unet", "vae"])
def test_nans_fail_the_request(client, where):
    client.fault(where, "nans")
    with pytest.raises(api.ApiError, match="NaNs was produced"):
        client.txt2img(steps=3)


@pytest.mark.parametrize("where", ["cfg_denoiser", "process_before_every_sampling", "postprocess_batch"])
def test_the_host_swallows_a_fault_in_a_callback(client, planting_webui, where):
    stock = client.txt2img(steps=3)[0]
    client.fault(where)
    assert api.same(client.txt2img(steps=3)[0], stock)
    assert client.post("/probe/off") == {"unspent_faults": 0}
    assert f"probe fault: {where}" in planting_webui.log()


def test_an_interrupt_ends_the_sampling(client):
    client.watch()
    client.fault("unet", "interrupt", after=5)
    client.txt2img(steps=10)
    assert len(client.calls()) == 6


def test_off_leaves_no_hook(client):
    before = client.get("/count")
    client.watch()
    client.fault("unet")
    assert client.get("/count")["hooks"] > before["hooks"]
    client.post("/probe/off")
    assert client.get("/count") == before


def test_the_checksum_tells_checkpoints_apart(client):
    one = client.get("/probe/checksum")["sha256"]
    client.options(sd_model_checkpoint="tiny-sdxl-b.safetensors")
    other = client.get("/probe/checksum")["sha256"]
    client.options(sd_model_checkpoint="tiny-sdxl.safetensors")
    assert one != other
    assert client.get("/probe/checksum")["sha256"] == one


def test_watches_a_model_that_is_loaded_later(client):
    client.watch()
    client.options(sd_model_checkpoint="tiny-sd15.safetensors")
    client.txt2img(steps=2)
    calls = client.calls()
    client.options(sd_model_checkpoint="tiny-sdxl.safetensors")
    assert [call["model"] for call in calls] == ["tiny-sd15"] * 2


def test_reload_ui_starts_the_probe_anew(client, planting_webui):
    stock = client.txt2img(steps=3)[0]
    client.watch()
    planting_webui.reload_ui()
    assert client.get("/count") == {"hooks": 0}
    again = client.txt2img(steps=3)[0]
    assert np.array_equal(again.pixels, stock.pixels)
