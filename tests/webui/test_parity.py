"""The host's UNet and diffusers' compute the same, so that what is tested against one holds for the other."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from . import diffusers_unet as reference  # noqa: E402
from .server import models_dir  # noqa: E402

TOLERANCE = 1e-4  # of the largest value, fp32
NAMES = ["tiny-sdxl", "tiny-sdxl-refiner", "tiny-sdxl-inpaint", "tiny-sd15", "tiny-sd2"]


@pytest.mark.parametrize("name", NAMES)
def test_a_stock_unet_call_agrees(stock, tmp_path, name):
    stock.options(sd_model_checkpoint=f"{name}.safetensors")
    stock.watch(record=str(tmp_path / "calls.pt"))
    stock.txt2img(steps=4)
    stock.calls()
    stock.options(sd_model_checkpoint="tiny-sdxl.safetensors")
    unet = reference.diffusers_unet(models_dir() / "Stable-diffusion" / f"{name}.safetensors")
    recorded = torch.load(tmp_path / "calls.pt")
    assert len(recorded) == 4
    for call in recorded:
        theirs = reference.call(unet, call)
        assert (theirs - call["output"]).abs().max() < TOLERANCE * call["output"].abs().max()
