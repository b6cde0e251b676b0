"""Each technique alone and all together, in the sizes, batches and passes that the host offers."""

import numpy as np
import pytest

from .live import ALL, CUTOFF, DEEPCACHE, FREEU, HIRES, SMALL, TINY, Pass, reported

ALONE = {"freeu": FREEU, "cutoff": CUTOFF, "deepcache": DEEPCACHE, "tiny": TINY, "all": ALL}
LONG = "a red fox in the snow, " * 20  # over 75 tokens
SHAPES = {
    "512x512": {"width": 512, "height": 512, "steps": 4},
    "720x960": {"width": 720, "height": 960, "steps": 2},
    "1:3": {"width": 64, "height": 192},
    "batches": {"batch_size": 3, "n_iter": 2, "steps": 8},
    "long prompt": {"prompt": LONG, "negative_prompt": ""},
    "hires latent": HIRES,
    "hires pixels": {**HIRES, "hr_upscaler": "Lanczos", "hr_scale": 1.25},
    "hires sampler": {**HIRES, "hr_sampler_name": "DPM++ 2M", "hr_scheduler": "Karras", "hr_second_pass_steps": 7},
    "hires batches": {**HIRES, "batch_size": 2, "n_iter": 2, "steps": 6},
    "hires prompt": {**HIRES, "hr_prompt": LONG, "hr_negative_prompt": "blurry"},
    "tiling": {"tiling": True},
    "variation": {"subseed": 7, "subseed_strength": 0.3, "seed_resize_from_w": 96, "seed_resize_from_h": 96},
    "clip skip": {"override_settings": {"CLIP_stop_at_last_layers": 2}},
}


def noise(height=128, width=128, seed=0):
    """A picture to begin with: blocks of random colours."""
    small = np.random.default_rng(seed).integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8)
    return small.repeat(16, 0).repeat(16, 1)


def mask(height=128, width=128):
    painted = np.zeros((height, width), np.uint8)
    painted[: height // 2, width // 4 :] = 255
    return painted


@pytest.mark.parametrize("name", ALONE)
def test_a_technique_changes_the_picture(case, name):
    stock = case.txt2img(**SMALL)[0]
    optimised = case.txt2img(ALONE[name], **SMALL)[0]
    assert optimised.pixels.shape == stock.pixels.shape
    assert not np.array_equal(optimised.pixels, stock.pixels)


def test_twenty_steps_with_the_cutoff_at_half_compute_thirty_rows_of_forty(case):
    picture = case.txt2img(CUTOFF, width=128, height=128, steps=20)[0]
    assert case.passes == [Pass(calls=20, rows=30, full=20, cached=0)]
    assert 'SDXL Optim result: "20 calls, 30 of 40 rows"' in picture.infotext


def test_all_on_over_thirty_steps(case):
    case.txt2img(ALL, width=128, height=128, steps=30)
    assert case.passes == [Pass(calls=30, rows=45, full=10, cached=20)]
    assert case.reports[0]["freeu"] == "10"  # at branch 0 a cached call runs none of its blocks


@pytest.mark.parametrize("interval", [1, 2, 5, 10])
def test_one_full_step_in_each_interval(case, interval):
    case.txt2img({"deepcache": {"enabled": True, "cache_interval": interval}}, **SMALL)
    full = -(-12 // interval)
    assert case.passes == [Pass(calls=12, rows=24, full=full, cached=12 - full)]


@pytest.mark.parametrize("branch", [0, 2, 5, 8])
def test_a_cached_step_runs_the_blocks_above_its_branch_alone(case, branch):
    case.counts = False
    leaves = case.watch()["block_leaves"]
    case.txt2img({"deepcache": {"enabled": True, "cache_branch_id": branch}}, **SMALL)
    calls = case.calls()
    kept = [f"input_blocks.{i}" for i in range(branch + 1)] + [f"output_blocks.{8 - i}" for i in range(branch + 1)]
    for i, call in enumerate(calls):
        assert call["blocks"] == (leaves if i % 3 == 0 else {name: leaves[name] for name in kept})


def test_a_branch_deeper_than_the_unet_is_refused(case):
    picture = case.txt2img({"deepcache": {"enabled": True, "cache_branch_id": 9}}, **SMALL)[0]
    assert "DeepCache refused: branch 9 is deeper than this model's UNet; allowed: 0 to 8" in picture.infotext


def test_windows_and_nonuniform_steps(case):
    window = {"enabled": True, "start": 0.25, "stop": 0.75}
    case.txt2img({"freeu": {**window, "version": 2}, "deepcache": {**window, "cache_interval": 2}}, **SMALL)
    assert case.passes == [Pass(calls=12, rows=24, full=9, cached=3)]
    assert case.reports[0]["freeu"] == "3"
    case.txt2img({"deepcache": {"enabled": True, "mode": "nonuniform", "center": 0.2, "power": 2.0}}, **SMALL)
    assert case.passes == [Pass(calls=12, rows=24, full=4, cached=8)]


@pytest.mark.parametrize("name", SHAPES)
def test_all_together(case, name):
    request = {**SMALL, **SHAPES[name]}
    pictures = case.txt2img(ALL, **request)
    assert len(pictures) == request.get("batch_size", 1) * request.get("n_iter", 1)
    stock_rows = 2 * request.get("batch_size", 1)
    assert all(counts.cached and counts.rows < stock_rows * counts.calls for counts in case.passes)


def test_enabled_with_every_technique_off_is_the_stock_picture(case):
    stock = case.txt2img(**SMALL)[0]
    enabled = case.txt2img({}, **SMALL)[0]
    assert np.array_equal(enabled.pixels, stock.pixels)
    case.counts = False
    disabled = case.txt2img({**ALL, "enabled": False}, **SMALL)[0]
    assert np.array_equal(disabled.pixels, stock.pixels)
    assert disabled.infotext == stock.infotext


@pytest.mark.parametrize("upscaler", ["Latent", "Lanczos"])
def test_settings_of_the_hires_pass(case, upscaler):
    request = {**SMALL, **HIRES, "hr_upscaler": upscaler}
    same = case.txt2img({**ALL, "hires": "same"}, **request)[0]
    base, hires = case.passes
    off = case.txt2img({**ALL, "hires": "off"}, **request)[0]
    assert case.passes == [base, Pass(hires.calls, 2 * hires.calls, hires.calls, 0)]
    own = case.txt2img({**ALL, "hires": {"cfg_cutoff": {"enabled": True, "stop": 0.0}}}, **request)[0]
    assert case.passes == [base, Pass(hires.calls, hires.calls, hires.calls, 0)]
    pictures = [picture.pixels.tobytes() for picture in (same, off, own)]
    assert len(set(pictures)) == 3
    assert [report["name"] for report in reported(own)] == ["base", "hires"]


@pytest.mark.parametrize("name", ["freeu", "cutoff", "deepcache", "tiny", "all"])
def test_img2img(case, name):
    case.img2img(noise(), ALONE[name], **{**SMALL, "steps": 24})
    assert case.reports[0]["calls"] == "13"


@pytest.mark.parametrize("more", [{"resize_mode": 3}, {"denoising_strength": 1.0}, {"denoising_strength": 0.05},
                                  {"initial_noise_multiplier": 0.9}, {"batch_size": 2, "n_iter": 2}])  # fmt: skip
def test_img2img_all_together(case, more):
    case.img2img(noise(96, 160), ALL, **{**SMALL, **more})


@pytest.mark.parametrize("fill", [0, 1, 2, 3])
def test_inpainting(case, fill):
    case.img2img(noise(), ALL, mask=mask(), **SMALL, inpainting_fill=fill, mask_blur=2)


def test_inpainting_only_masked(case):
    case.img2img(noise(256, 256), ALL, mask=mask(256, 256), **SMALL, inpaint_full_res=True, mask_blur=2)


def test_inpainting_soft_and_by_a_sampler_that_masks_before_denoising(case):
    case.img2img(noise(), ALL, mask=mask(), **SMALL, sampler_name="DDIM", mask_blur=8)


def test_inpainting_checkpoint(case):
    case.options(sd_model_checkpoint="tiny-sdxl-inpaint.safetensors")
    case.img2img(noise(), ALL, mask=mask(), **SMALL)
    case.txt2img(ALL, **SMALL)
