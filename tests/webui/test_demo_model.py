"""The demo model in the real WebUI and in diffusers: the same UNet, the same picture, and what the prompt asks for."""

import shutil

import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from demo_model.check import caption_check  # noqa: E402
from demo_model.evaluate import ssim  # noqa: E402
from demo_model.export import NAME, write_diffusers, write_webui  # noqa: E402

from . import diffusers_unet as reference  # noqa: E402
from .conftest import running  # noqa: E402

PROMPTS = ("a large red circle in the center", "a blue square on the left and a yellow star on the right")
STEPS = 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder like a WebUI's, with the demo model in its places."""
    folder = tmp_path_factory.mktemp("webui")
    (folder / "modules").mkdir()
    (folder / "models").mkdir()
    write_webui(folder)
    return folder


@pytest.fixture(scope="module")
def webui(folder):
    checkpoints = folder / "models" / "Stable-diffusion"
    settings = {"sd_model_checkpoint": f"{NAME}.safetensors", "randn_source": "CPU"}
    yield from running(flags=("--ckpt-dir", checkpoints), settings=settings)


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    pipe = diffusers.StableDiffusionXLPipeline.from_pretrained(write_diffusers(tmp_path_factory.mktemp("diffusers")))
    pipe.scheduler = diffusers.EulerDiscreteScheduler.from_config(pipe.scheduler.config, timestep_spacing="linspace")
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("prompt", PROMPTS)
def test_the_same_picture_in_both_hosts(webui, pipe, prompt):
    theirs = webui.client.txt2img(prompt=prompt, negative_prompt="", steps=STEPS, seed=3, scheduler="Uniform")[0].pixels
    seed = torch.Generator("cpu").manual_seed(3)
    ours = pipe(prompt, num_inference_steps=STEPS, guidance_scale=5.0, height=256, width=256, generator=seed).images[0]
    assert similarity(theirs, pixels(ours)) > 0.99
    assert caption_check(theirs, prompt).passed == caption_check(ours, prompt).passed


def test_the_tiny_decoder_is_read_and_draws_nearly_the_same(webui, folder):
    path = webui.models / "VAE-taesd" / "taesdxl_decoder.pth"
    path.unlink()  # a link to the tests' own
    shutil.copy(folder / "models" / "VAE-taesd" / path.name, path)
    request = {"prompt": PROMPTS[0], "negative_prompt": "", "steps": STEPS, "seed": 3}
    stock = webui.client.txt2img(**request)[0]
    tiny = webui.client.txt2img({"vae": {"decoder": "tiny"}}, **request)[0]
    assert "VAE Decoder: TAESD" in tiny.infotext
    assert 0.95 < similarity(stock.pixels, tiny.pixels) < 1


def test_adaptive_deepcache_uses_the_calibration_beside_the_checkpoint(webui):
    request = {"prompt": PROMPTS[1], "negative_prompt": "", "steps": 30, "seed": 3}
    stock = webui.client.txt2img(**request)[0]
    made = {}
    for mode in ("uniform", "adaptive"):
        settings = {"deepcache": {"enabled": True, "cache_interval": 3, "mode": mode}}
        made[mode] = webui.client.txt2img(settings, **request)[0]
        assert "not adaptive" not in made[mode].infotext
    likeness = {mode: similarity(stock.pixels, picture.pixels) for mode, picture in made.items()}
    assert likeness["uniform"] < likeness["adaptive"] < 1


def test_a_calibration_that_promises_little_is_not_followed(webui):
    request = {"prompt": PROMPTS[1], "negative_prompt": "", "steps": STEPS, "seed": 3}
    pictures = [
        webui.client.txt2img({"deepcache": {"enabled": True, "cache_interval": 4, "mode": mode}}, **request)[0]
        for mode in ("uniform", "adaptive")
    ]
    assert (pictures[0].pixels == pictures[1].pixels).all()
    assert "not adaptive: the calibration promises too small a gain" in pictures[1].infotext


def similarity(a, b) -> float:
    return ssim(*(torch.tensor(x).permute(2, 0, 1)[None] / 255 for x in (a, b))).item()


def pixels(image):
    import numpy as np

    return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("name", [NAME, f"{NAME}-refiner"])
def test_a_unet_call_agrees(webui, folder, tmp_path, name):
    webui.client.options(sd_model_checkpoint=f"{name}.safetensors")
    webui.client.watch(record=str(tmp_path / "calls.pt"))
    webui.client.txt2img(prompt=PROMPTS[0], steps=4)
    webui.client.calls()
    webui.client.post("/probe/off")
    webui.client.options(sd_model_checkpoint=f"{NAME}.safetensors")
    unet = reference.diffusers_unet(folder / "models" / "Stable-diffusion" / f"{name}.safetensors")
    recorded = torch.load(tmp_path / "calls.pt")
    assert len(recorded) == 4
    for call in recorded:
        assert (reference.call(unet, call) - call["output"]).abs().max() < 1e-3 * call["output"].abs().max()
