"""The VAE in another precision and in tiles, and a NaN that never gets through."""

import copy
import random
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from skimage.metrics import structural_similarity

from demo_model import data
from demo_model.export import write_diffusers
from sdxl_optim.hosts.standalone.request_facts import OWN_NORMS
from sdxl_optim.hosts.standalone.vae import vae_as_planned
from sdxl_optim.planning.plan import plan_request
from sdxl_optim.report import JobReport
from sdxl_optim.sampling.facts import RequestFacts
from sdxl_optim.settings import from_dict
from sdxl_optim.techniques.vae.counts import VaeReport
from sdxl_optim.techniques.vae.norms import norms_with, reduced, statistics_of
from sdxl_optim.techniques.vae.patch import (
    DTYPES,
    auto_precision,
    computes_bf16,
    computing_in,
    largest_tile,
    vae_attached,
    work_of,
)
from sdxl_optim.techniques.vae.rules import Precision

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    """The demo model's, which is trained."""
    folder = tmp_path_factory.mktemp("demo-model")
    write_diffusers(folder)
    return AutoencoderKL.from_pretrained(folder / "vae").eval()


def state_of(module) -> dict:
    return {name: (t.dtype, t.data_ptr(), t.clone()) for name, t in module.state_dict().items()}


def same_state(module, before: dict) -> bool:
    after = module.state_dict()
    return all(
        after[name].dtype == dtype and after[name].data_ptr() == place and torch.equal(after[name], value)
        for name, (dtype, place, value) in before.items()
    )


@pytest.fixture(scope="module")
def picture():
    """[1, 3, 256, 256], a picture such as the VAE was trained on."""
    rng = random.Random(0)
    rows, _ = data.rasterise(data.sample_scene(rng), rng)
    return data.render(torch.as_tensor(rows).float()[None]).float() * 2 - 1


@pytest.mark.slow
@torch.no_grad()
def test_tiles_of_a_trained_vae_look_as_the_whole(vae, picture, monkeypatch):
    """As much as diffusers' tiles of that size do. How much that is depends on the weights: group norms look at a
    tile instead of the whole picture, and the demo model's have two channels a group."""
    z = vae.encode(picture).latent_dist.mode()
    whole = vae.decode(z).sample
    monkeypatch.setattr(vae, "tile_latent_min_size", 24)
    monkeypatch.setattr(vae, "tile_sample_min_size", 192)
    vae.enable_tiling()
    theirs, their_z = vae.decode(z).sample, vae.encode(picture).latent_dist.mode()
    vae.disable_tiling()
    report = VaeReport()
    with vae_attached(vae.encoder, vae.decoder, None, 24, report):
        tiled = vae.decode(z).sample
        tiled_z = vae.encode(picture).latent_dist.mode()
    assert report.tiles == 2 * 4
    assert not torch.equal(tiled, whole)
    assert ssim(whole, tiled) >= max(0.85, ssim(whole, theirs) - 0.005)
    assert ssim(whole, vae.decode(tiled_z).sample) >= max(0.85, ssim(whole, vae.decode(their_z).sample) - 0.005)
    assert torch.equal(vae.decode(z).sample, whole)


@pytest.fixture(scope="module")
def large():
    """[1, 3, 512, 512], busier than what the VAE was trained on."""
    rng = random.Random(3)
    rows, _ = data.rasterise(data.sample_dense(rng), rng)
    return data.render(torch.as_tensor(rows).float()[None], 512).float() * 2 - 1


def norms_in(*modules) -> list[torch.nn.GroupNorm]:
    return [m for module in modules for m in module.modules() if isinstance(m, torch.nn.GroupNorm)]


@pytest.mark.slow
@torch.no_grad()
def test_with_norms_of_the_picture_tiles_look_as_the_whole(vae, large):
    """A quarter of the picture in each tile, as with tiles of 512 for 1024×1024."""
    z = vae.encode(large).latent_dist.mode()
    whole, looks, codes = vae.decode(z).sample, {}, {}
    for norms in ("tile", "picture"):
        report = VaeReport()
        with vae_attached(vae.encoder, vae.decoder, None, 32, report, norms=norms):
            looks[norms] = ssim(whole, vae.decode(z).sample)
            codes[norms] = float((vae.encode(large).latent_dist.mode() - z).square().mean())
        assert report.happened() == ["VAE in fp32", "18 tiles"] + ["norms of the whole picture"] * (norms == "picture")
    assert looks["picture"] >= 0.98 > looks["tile"]
    assert codes["picture"] < codes["tile"] / 3
    assert not any("forward" in vars(m) or m._forward_pre_hooks for m in norms_in(vae))
    assert torch.equal(vae.decode(z).sample, whole)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norms_with_their_own_statistics_are_what_they_were(dtype):
    norm, x = torch.nn.GroupNorm(4, 8).to(dtype), (torch.randn(2, 8, 5, 7) * 3 + 20).to(dtype)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    before = norm(x)
    found = statistics_of(norm, lambda: norm(x))
    assert [t.dtype for t in found[norm]] == [torch.float32] * 2
    with norms_with(found):
        after = norm(x)
        part = norm(x[..., :3])
    assert after.dtype == dtype
    torch.testing.assert_close(after, before)
    torch.testing.assert_close(part, before[..., :3])
    assert "forward" not in vars(norm)


@torch.no_grad()
def test_norms_of_the_picture_are_measured_again_in_the_safer_precision(vae):
    z = torch.randn(2, 4, 24, 16)
    with vae_attached(vae.encoder, vae.decoder, torch.float32, 16, VaeReport(), norms="picture"):
        right = vae.decode(z).sample
    report, hook = VaeReport(), vae.decoder.conv_out.register_forward_hook(spoil_half)
    try:
        with vae_attached(vae.encoder, vae.decoder, torch.bfloat16, 16, report, norms="picture"):
            assert torch.equal(vae.decode(z).sample, right)
    finally:
        hook.remove()
    assert report.retries == ["bf16 gave a NaN; computed again in fp32"]


@torch.no_grad()
def test_norms_of_the_picture_come_from_a_picture_no_larger_than_a_halved_tile(vae):
    seen = []

    def run_out(module, args):
        seen.append(args[0].shape[-2] * args[0].shape[-1])
        if seen[-1] > 32**2:
            raise torch.cuda.OutOfMemoryError("too large")

    report, hook = VaeReport(), vae.decoder.conv_in.register_forward_pre_hook(run_out)
    try:
        with vae_attached(vae.encoder, vae.decoder, None, 64, report, norms="picture"):
            assert vae.decode(torch.randn(1, 4, 48, 32)).sample.shape == (1, 3, 384, 256)
    finally:
        hook.remove()
    assert report.retries == ["memory ran out; computed again in tiles of 256"]
    assert report.norms
    assert report.tiles == 2
    assert len(seen) == 1 + 1 + 2  # what didn't fit, the picture thinned out, two tiles


@torch.no_grad()
def test_an_error_leaves_no_norms(vae):
    calls = []

    def fail_in_the_third(module, args):
        calls.append(1)
        assert len(calls) < 3

    hook = vae.decoder.conv_out.register_forward_pre_hook(fail_in_the_third)
    try:
        with vae_attached(vae.encoder, vae.decoder, None, 8, VaeReport(), norms="picture"):
            for _ in range(2):  # in a tile, then in the pass over the picture
                with pytest.raises(AssertionError):
                    vae.decode(torch.randn(1, 4, 16, 8))
                assert not any("forward" in vars(m) or m._forward_pre_hooks for m in norms_in(vae))
    finally:
        hook.remove()


@pytest.mark.parametrize(
    ("size", "unit", "expected"),
    [((128, 128), 1, (64, 64)), ((512, 1024), 8, (360, 720)), ((8, 40), 1, (8, 40))],
)
def test_no_reduced_picture_is_larger_than_a_tile(size, unit, expected):
    assert reduced(torch.rand(1, 3, *size), 64, unit).shape == (1, 3, *expected)


def ssim(a: torch.Tensor, b: torch.Tensor) -> float:
    a, b = (((t[0].permute(1, 2, 0).clamp(-1, 1) + 1) * 127.5).numpy().astype(np.uint8) for t in (a, b))
    return structural_similarity(a, b, channel_axis=2)


@torch.no_grad()
def test_another_precision_leaves_the_weights_as_they_were(vae):
    before, z, report = state_of(vae), torch.randn(1, 4, 8, 8), VaeReport()
    with vae_attached(vae.encoder, vae.decoder, torch.bfloat16, None, report):
        out = vae.decode(z).sample
        assert out.dtype == torch.bfloat16
        assert vae.encode(out.float()).latent_dist.mode().dtype == torch.float32
        assert same_state(vae, before)
    assert report.happened() == ["VAE in bf16"]
    assert same_state(vae, before)
    assert "forward" not in vars(vae.decoder)


@torch.no_grad()
def test_a_nan_is_decoded_again_and_said_once(vae):
    z, report = torch.randn(1, 4, 8, 8), VaeReport()
    right = vae.decode(z).sample
    hook = vae.decoder.conv_out.register_forward_hook(spoil_half)
    try:
        with vae_attached(vae.encoder, vae.decoder, torch.bfloat16, None, report):
            for _ in range(2):
                assert torch.equal(vae.decode(z).sample, right)
    finally:
        hook.remove()
    assert report.retries == ["bf16 gave a NaN; computed again in fp32"]
    assert report.precision == "fp32"


@torch.no_grad()
def test_a_preview_in_another_thread_does_not_change_the_weights_under_a_decode(vae, monkeypatch):
    """It would begin first and end in between: what it puts back is not what the picture computes in."""
    vae = copy.deepcopy(vae).to(torch.bfloat16)
    z, entered, failed = torch.randn(1, 4, 8, 8), threading.Event(), []
    came = threading.Event()  # the picture, to where it has to wait, or past it

    class Door:
        def __init__(self):
            self.lock = threading.RLock()

        def __enter__(self):
            if entered.is_set() and threading.current_thread() is not preview:
                came.set()
            self.lock.acquire()

        def __exit__(self, *_):
            self.lock.release()

    monkeypatch.setattr("sdxl_optim.techniques.vae.patch.RLock", Door)
    with vae_attached(vae.encoder, vae.decoder, torch.float32, None, VaeReport()):
        right = vae.decoder(z)

        def slowly(*_):
            if threading.current_thread() is preview:
                entered.set()
                assert came.wait(10)
            else:
                came.set()
                preview.join()

        def decode():
            try:
                vae.decoder(z)
            except (RuntimeError, AssertionError) as error:
                failed.append(error)

        preview, hook = threading.Thread(target=decode), vae.decoder.conv_in.register_forward_hook(slowly)
        try:
            preview.start()
            assert entered.wait(10)
            assert torch.equal(vae.decoder(z), right)
        finally:
            preview.join()
            hook.remove()
    assert not failed
    assert next(vae.decoder.parameters()).dtype == torch.bfloat16


def spoil_half(module, args, out):
    """What an overflow leaves: one infinity, far from the corner."""
    if out.dtype != torch.float32:
        out[0, 1, 5, 7] = float("inf")
    return out


@torch.no_grad()
def test_an_encoder_nan_is_encoded_again(vae, picture):
    right, report = vae.encode(picture).latent_dist.mode(), VaeReport()
    hook = vae.encoder.conv_out.register_forward_hook(spoil_half)
    try:
        with vae_attached(vae.encoder, vae.decoder, torch.bfloat16, 32, report):
            assert vae.encode(picture).latent_dist.mode().isfinite().all()
        with vae_attached(vae.encoder, vae.decoder, torch.bfloat16, None, report):
            assert torch.equal(vae.encode(picture).latent_dist.mode(), right)
    finally:
        hook.remove()
    assert len(report.retries) == 1


@torch.no_grad()
def test_an_error_leaves_no_trace(vae):
    before = state_of(vae)
    hook = vae.decoder.conv_out.register_forward_hook(lambda *_: 1 / 0)
    try:
        with pytest.raises(ZeroDivisionError), vae_attached(vae.encoder, vae.decoder, torch.bfloat16, 8, VaeReport()):
            vae.decode(torch.randn(1, 4, 16, 16))
    finally:
        hook.remove()
    assert same_state(vae, before)
    assert "forward" not in vars(vae.decoder)


@torch.no_grad()
@pytest.mark.parametrize(("latents", "relief", "first"), [(40, 0, [64, 32]), (40, 1, [64, 64]), (30, 0, None)])
def test_where_memory_runs_out_tiles_get_smaller(vae, latents, relief, first):
    """latents: along the side of what there is memory for. relief: how often memory is found, with which all fits."""
    seen, left = [], [relief]

    def run_out(module, args):
        seen.append(args[0].shape[-1])
        if seen[-1] > latents and left[0] >= relief:
            raise torch.cuda.OutOfMemoryError("too large")

    def relieve():
        left[0] = max(left[0] - 1, 0)
        return left[0] < relief

    report, z = VaeReport(), torch.randn(1, 4, 64, 64)
    hook = vae.decoder.conv_in.register_forward_pre_hook(run_out)
    try:
        with vae_attached(vae.encoder, vae.decoder, None, 128, report, relieve):
            if first is None:
                with pytest.raises(torch.cuda.OutOfMemoryError):
                    vae.decode(z)
                return
            out = vae.decode(z).sample
    finally:
        hook.remove()
    assert out.shape == (1, 3, 512, 512)
    again = "with the rest of the model in main memory" if relief else "in tiles of 256"
    assert report.retries == [f"memory ran out; computed again {again}"]
    assert report.tiles == (0 if relief else 9)
    assert seen[:2] == first


def test_what_fits_is_a_matter_of_pixels(vae):
    report = VaeReport()
    with torch.no_grad(), vae_attached(vae.encoder, vae.decoder, None, 8, report):
        vae.decode(torch.randn(1, 4, 4, 16))
        assert report.tiles == 0
        vae.decode(torch.randn(1, 4, 5, 16))
        assert report.tiles == 3


def test_the_largest_tile_that_fits():
    half, single = torch.float16, torch.float32
    assert largest_tile(work_of(1024**2, half), half) == 128
    assert largest_tile(work_of(1024**2, half) - 1, half) == 120
    assert work_of(100, single) == 2 * work_of(100, half)
    assert largest_tile(0, half) == 32


def test_precision_goes_with_the_device(monkeypatch):
    cuda = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    assert auto_precision(cuda) == "bf16"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert not computes_bf16(cuda)
    assert auto_precision(cuda) == "fp32"
    assert auto_precision(cuda, has_fix=True) == "fp16"
    assert auto_precision(CPU, has_fix=True) == "fp32"


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_which_precision_is_decided(device):
    def decided(wanted: str):
        return Precision().decide(
            from_dict({"vae": {"precision": wanted}}), RequestFacts(device=device, vae_precision="bf16")
        )

    assert decided("host").config is None
    assert (decided("auto").config, decided("fp32").config) == ("bf16", "fp32")
    assert {name: DTYPES[name] for name in ("bf16", "fp16", "fp32")} == {
        "bf16": torch.bfloat16,
        "fp16": torch.float16,
        "fp32": torch.float32,
    }
    half = decided("fp16")
    assert half.config == ("fp32" if device == "cpu" else "fp16")
    assert ["CPU" in note.text for note in half.notes] == [True] * (device == "cpu")
    assert not any(note.refused for note in half.notes)


def test_computing_in_keeps_integers(vae):
    module = torch.nn.BatchNorm2d(2)
    with computing_in(module, torch.bfloat16):
        assert module.num_batches_tracked.dtype == torch.int64
        assert module.weight.dtype == module.running_mean.dtype == torch.bfloat16
    assert module.weight.dtype == torch.float32


def ways_of(vae) -> tuple:
    return vae.use_slicing, vae.use_tiling, vae.tile_sample_min_size, vae.tile_latent_min_size


def test_diffusers_tiles_and_slices_and_forgets_it(vae):
    pipe = SimpleNamespace(vae=vae)
    before, job = ways_of(vae), JobReport()
    plan = plan_request(from_dict({"vae": {"precision": "bf16", "tiling": True, "tile_size": 256}}), RequestFacts())
    with vae_as_planned(SimpleNamespace(base=pipe, refiner=pipe), plan, job):
        assert ways_of(vae) == (True, True, 256, 32)
        with torch.no_grad():
            assert vae.decode(torch.randn(2, 4, 8, 40)).sample.dtype == torch.bfloat16
    assert ways_of(vae) == before
    assert job.vae.happened() == ["VAE in bf16", "tiles of 256"]
    assert not job.notes
    assert not plan.notes


def test_diffusers_tiles_keep_norms_of_their_own_and_that_is_said(vae):
    for tiling in (False, True):
        models, job = SimpleNamespace(base=SimpleNamespace(vae=vae), refiner=None), JobReport()
        settings = from_dict({"vae": {"tiling": tiling, "tile_norms": "picture"}})
        plan = plan_request(settings, RequestFacts({"vae.tile_norms": OWN_NORMS}))
        with vae_as_planned(models, plan, job):
            assert not any("forward" in vars(m) for m in norms_in(vae))
        assert [note.feature for note in plan.notes] == ["VAE tile norms"] * tiling
