"""FreeU against diffusers (version 1), the paper's formula (version 2) and `torch.fft` (the filter)."""

from __future__ import annotations

import host_loop
import ldm_unet
import pytest
import torch

from sdxl_optim.run import Run
from sdxl_optim.sampling.loop import Loop
from sdxl_optim.techniques.freeu.tensors import scale_backbone, scale_low_frequencies

ARTICLE = {"b1": 1.3, "b2": 1.4, "s1": 0.9, "s2": 0.2}


def relative_error(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a.double() - b.double()).norm() / b.double().norm()).item()


def our_call(unet, inputs, version: int, factors: dict) -> torch.Tensor:
    loop = Loop.of_steps([1])
    plan = host_loop.plan_for({"freeu": {"enabled": True, "version": version, **factors}}, loop, unet=unet)
    with Run(plan) as run:
        run.attach(unet)
        run.begin_call(2, 2, 1)
        return unet(*inputs.args)


@pytest.mark.parametrize("name", ldm_unet.CONFIGS)
@pytest.mark.parametrize("size", [(16, 16), (8, 24)])
def test_version_1_agrees_with_diffusers(name, size):
    pytest.importorskip("diffusers")
    unet = ldm_unet.tiny_unet(name)
    inputs = ldm_unet.random_inputs(unet.config, size=size)
    theirs = ldm_unet.to_diffusers(unet)
    stock = theirs(*inputs.diffusers_args, **inputs.diffusers_kwargs).sample
    theirs.enable_freeu(**ARTICLE)
    expected = theirs(*inputs.diffusers_args, **inputs.diffusers_kwargs).sample
    assert relative_error(stock, expected) > 1e-2  # FreeU does something here
    assert relative_error(our_call(unet, inputs, 1, ARTICLE), expected) < 1e-4


def fft_filter(x: torch.Tensor, scale: float, threshold: int = 1) -> torch.Tensor:
    """The filter as the paper's code has it: transform, centre, mask, back; in double precision."""
    freq = torch.fft.fftshift(torch.fft.fftn(x.double(), dim=(-2, -1)), dim=(-2, -1))
    mask = torch.ones_like(freq.real)
    row, column = x.shape[-2] // 2, x.shape[-1] // 2
    for i in range(row - threshold, row + threshold):
        for j in range(column - threshold, column + threshold):
            if 0 <= i < x.shape[-2] and 0 <= j < x.shape[-1]:
                mask[..., i, j] = scale
    back = torch.fft.ifftshift(freq * mask, dim=(-2, -1))
    return torch.fft.ifftn(back, dim=(-2, -1)).real


def naive_version_2(unet, inputs, b1, b2, s1, s2) -> torch.Tensor:
    """The UNet's forward written out with FreeU's version 2 in it, stages told by the features' height."""
    emb = unet.embedding(inputs.timesteps, inputs.y)
    h, skips = inputs.x, []
    for block in unet.input_blocks:
        h = block(h, emb, inputs.context)
        skips.append(h)
    h = unet.middle_block(h, emb, inputs.context)
    deepest = h.shape[-2]
    for block in unet.output_blocks:
        skip = skips.pop()
        for height, b, s in ((deepest, b1, s1), (2 * deepest, b2, s2)):
            if h.shape[-2] != height:
                continue
            amplified = h.clone()
            for picture in range(len(h)):
                mean = sum(h[picture, c] for c in range(h.shape[1])) / h.shape[1]
                strength = (mean - mean.min()) / (mean.max() - mean.min())
                for c in range(h.shape[1] // 2):
                    amplified[picture, c] = h[picture, c] * ((b - 1) * strength + 1)
            h, skip = amplified, fft_filter(skip, s).float()
            break
        h = block(torch.cat([h, skip], 1), emb, inputs.context)
    return unet.out(h)


@pytest.mark.parametrize("name", ldm_unet.CONFIGS)
def test_version_2_agrees_with_the_formula_written_out(name):
    unet = ldm_unet.tiny_unet(name)
    inputs = ldm_unet.random_inputs(unet.config, size=(16, 24))
    expected = naive_version_2(unet, inputs, **ARTICLE)
    ours = our_call(unet, inputs, 2, ARTICLE)
    assert relative_error(unet(*inputs.args), expected) > 1e-2
    assert relative_error(our_call(unet, inputs, 1, ARTICLE), expected) > 1e-3  # the versions differ
    assert relative_error(ours, expected) < 1e-4


def test_version_2_leaves_features_without_structure_alone():
    h = torch.ones(1, 4, 3, 3)
    assert torch.equal(scale_backbone(h, 1.5, 2), h[:, :2])


def test_the_backbone_keeps_dtype_and_half_the_channels():
    for version in (1, 2):
        for dtype in (torch.float16, torch.bfloat16, torch.float32):
            out = scale_backbone(torch.randn(2, 6, 4, 5).to(dtype), 1.4, version)
            assert (out.dtype, tuple(out.shape)) == (dtype, (2, 3, 4, 5))


TINY = [(1, 1), (1, 2), (1, 5), (5, 1), (2, 1), (2, 2), (2, 3)]
SIZES = [*TINY, (3, 3), (4, 4), (5, 7), (8, 8), (9, 16), (23, 30), (64, 64)]
PRECISION = {torch.float32: 2e-6, torch.float16: 6e-4, torch.bfloat16: 5e-3}


@pytest.mark.parametrize("size", SIZES, ids=lambda s: f"{s[0]}x{s[1]}")
@pytest.mark.parametrize("dtype", PRECISION, ids=str)
@pytest.mark.parametrize("scale", [0.2, 0.9, 2.0])
def test_the_filter_is_the_masked_fourier_transform(size, dtype, scale):
    x = (torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(3)) + 0.5).to(dtype)
    ours = scale_low_frequencies(x, scale)
    assert (ours.dtype, ours.shape) == (x.dtype, x.shape)
    assert relative_error(ours, fft_filter(x, scale)) < PRECISION[dtype]


@pytest.mark.parametrize("size", SIZES, ids=lambda s: f"{s[0]}x{s[1]}")
@pytest.mark.parametrize("dtype", PRECISION, ids=str)
def test_the_filter_agrees_with_diffusers(size, dtype):
    pytest.importorskip("diffusers")
    from diffusers.utils.torch_utils import fourier_filter

    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(4)).to(dtype)
    try:
        expected = fourier_filter(x, threshold=1, scale=0.2)
    except RuntimeError as error:
        if "Unsupported dtype" not in str(error):
            raise
        pytest.skip(f"diffusers' own filter with torch {torch.__version__} on the CPU: {error}")
    assert relative_error(scale_low_frequencies(x, 0.2), expected) < PRECISION[dtype]


def test_the_filter_works_in_fp32_under_autocast():
    """The WebUI samples under autocast; in half precision these sums overflow."""
    x = torch.randn(1, 2, 32, 32, generator=torch.Generator().manual_seed(5)) + 30
    expected = fft_filter(x, 0.2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = scale_low_frequencies(x, 0.2)
    assert ours.dtype == x.dtype
    assert relative_error(ours, expected) < 2e-6


def test_the_filter_leaves_its_input_alone_and_accepts_slices():
    whole = torch.randn(2, 6, 8, 8)
    x = whole[:, 2:5]
    before = whole.clone()
    ours = scale_low_frequencies(x, 0.3)
    assert torch.equal(whole, before)
    assert relative_error(ours, fft_filter(x, 0.3)) < 2e-6
    permuted = whole.to(memory_format=torch.channels_last)
    assert relative_error(scale_low_frequencies(permuted, 0.3), fft_filter(permuted, 0.3)) < 2e-6
