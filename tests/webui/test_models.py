"""Other checkpoints, checkpoints that change, and other people's hands on the UNet."""

import pytest

from .live import ALL, CUTOFF, HIRES, SMALLER, Pass, notes, reported
from .test_techniques import noise

REFINER = "tiny-sdxl-refiner.safetensors"


@pytest.mark.parametrize("name", ["tiny-sdxl-b", "tiny-sdxl-refiner", "tiny-sdxl-inpaint", "tiny-sd15", "tiny-sd2"])
def test_each_kind_of_checkpoint(case, name):
    case.options(sd_model_checkpoint=f"{name}.safetensors")
    case.txt2img(ALL, **SMALLER)
    assert case.passes == [Pass(calls=12, rows=18, full=4, cached=8)]
    assert case.reports[0]["freeu"] == "4"  # cached calls skip the blocks on which it acts
    case.img2img(noise(64, 64), ALL, **SMALLER)


@pytest.mark.parametrize("other", ["tiny-sdxl-b.safetensors", "tiny-sd15.safetensors"])
def test_switching_between_two_checkpoints(case, other):
    for name in ("tiny-sdxl.safetensors", other, "tiny-sdxl.safetensors", other):
        case.options(sd_model_checkpoint=name)
        case.txt2img(ALL, **SMALLER)


def test_weights_loaded_into_the_same_model(case):
    for name in ("tiny-sdxl-b.safetensors", "tiny-sdxl-b.ckpt", "tiny-sdxl-b.safetensors"):
        case.options(sd_model_checkpoint=name)
        case.txt2img(ALL, **SMALLER)


def test_a_checkpoint_named_by_the_request(case):
    case.txt2img(ALL, **SMALLER, override_settings={"sd_model_checkpoint": "tiny-sdxl-b.safetensors"})


@pytest.mark.parametrize(
    ("sampler", "by_steps"),
    [*((name, False) for name in ("Euler", "Heun", "DDIM", "DPM++ SDE", "Restart")), ("Euler", True), ("Heun", True)],
)
def test_refiner(case, sampler, by_steps):
    case.options(refiner_switch_by_sample_steps=by_steps)
    request = {**SMALLER, "steps": 15, "sampler_name": sampler, "refiner_checkpoint": REFINER, "refiner_switch_at": 0.8}
    picture = case.txt2img(ALL, **request)[0]
    assert "Refiner: tiny-sdxl-refiner" in picture.infotext
    assert case.passes[0].cached


def test_the_first_step_of_the_refiner_is_a_full_one(case):
    case.options(refiner_switch_by_sample_steps=True)
    case.counts = False
    case.watch()
    script = {"deepcache": {"enabled": True, "cache_interval": 10}}
    case.txt2img(script, **{**SMALLER, "steps": 10}, refiner_checkpoint=REFINER, refiner_switch_at=0.5)
    calls = case.calls()
    assert [call["model"] for call in calls] == ["tiny-sdxl"] * 5 + ["tiny-sdxl-refiner"] * 5
    assert [k for k, call in enumerate(calls) if "middle_block" in call["blocks"]] == [0, 5]


@pytest.mark.parametrize("which", ["first pass", "second pass", "both passes"])
def test_refiner_and_hires(case, which):
    case.options(hires_fix_refiner_pass=which)
    case.txt2img(ALL, **SMALLER, **HIRES, refiner_checkpoint=REFINER, refiner_switch_at=0.6)


def test_refiner_over_batches(case):
    case.txt2img(ALL, **SMALLER, n_iter=2, batch_size=2, refiner_checkpoint=REFINER, refiner_switch_at=0.6)


def test_hires_checkpoint(case):
    case.txt2img(ALL, **SMALLER, **HIRES, hr_checkpoint_name="tiny-sdxl-b.safetensors")
    case.txt2img(ALL, **SMALLER, **HIRES, hr_checkpoint_name="tiny-sd15.safetensors")


def test_a_lora_between_runs(case):
    with_lora = {**SMALLER, "prompt": "a red fox <lora:tiny-lora:1>"}
    one = case.txt2img(ALL, **with_lora)[0]
    without = case.txt2img(ALL, **SMALLER)[0]
    again = case.txt2img(ALL, **with_lora)[0]
    assert (one.pixels == again.pixels).all()
    assert (one.pixels != without.pixels).any()


def test_a_foreign_unet_is_left_alone(case):
    case.options(sd_unet="[probe] foreign")
    case.counts = False
    picture = case.txt2img(ALL, **SMALLER)[0]
    reason = "refused: the UNet is run by [probe] foreign"
    assert f"FreeU {reason}" in notes(picture)
    assert f"DeepCache {reason}" in notes(picture)
    [report] = reported(picture)
    assert (report["rows"], report["stock_rows"], report["cached"], report["unplanned"]) == ("18", "24", None, None)


def test_calls_by_others_pass_uncached_and_are_counted(case):
    case.counts = False
    leaves = case.watch()["block_leaves"]
    case.post("/others", act="pag")
    picture = case.txt2img(ALL, **SMALLER)[0]
    [report] = reported(picture)
    calls = case.calls()
    assert len(calls) == 24
    assert all(call["blocks"] == leaves for call in calls[1::2])
    assert (report["others"], report["rows"], report["cached"], report["unplanned"]) == ("12", "18", "8", None)
    cached = [k for k, call in enumerate(calls[::2]) if call["blocks"] != leaves]
    assert cached == [1, 2, 4, 5, 7, 8, 10, 11]


def test_blocks_that_run_twice_in_a_call_switch_the_cache_off(case):
    case.counts = False
    case.watch()
    case.post("/others", act="reference")
    picture = case.txt2img({**CUTOFF, "deepcache": {"enabled": True}}, **SMALLER)[0]
    assert "DeepCache refused: something ran the UNet's blocks twice in one call" in notes(picture)
    assert all("middle_block" in call["blocks"] for call in case.calls())
    [report] = reported(picture)
    assert (report["rows"], report["cached"]) == ("18", None)
