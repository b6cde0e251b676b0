"""Odd models and odd inputs at the command line, from end to end on tiny models: each ends with what a user can use."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("diffusers")
pytest.importorskip("DeepCache")

from diffusers import AutoencoderKL, AutoencoderTiny, StableDiffusionXLPipeline, UNet2DConditionModel
from safetensors.torch import save_file

from sdxl_optim import cli
from sdxl_optim.hosts.standalone import models as loading
from sdxl_optim.hosts.standalone import tiny
from sdxl_optim.hosts.standalone.single_file import FIRST_LAYER

SHORT = ["--prompt", "a bee", "--steps", "12", "--width", "64", "--height", "64", "--device", "cpu"]


@pytest.fixture
def odd(models, tmp_path):
    """A copy of the base model, in which a test changes a part."""
    shutil.copytree(models / "base", tmp_path / "odd")
    return tmp_path / "odd"


@pytest.fixture
def generate(models, tmp_path, capsys):
    """generate(model, *options, code=0) → (the JSON object, or what was printed), standard error."""

    def generate(model: Path | str, *options: str, code: int = 0):
        argv = ["generate", "--model", str(model), *SHORT, "--out", str(tmp_path / "out"), "--json", *options]
        capsys.readouterr()
        assert cli.main(argv) == code
        out, err = capsys.readouterr()
        if code:
            assert out == ""
            assert not (tmp_path / "out").exists()
        return (json.loads(out) if code == 0 else out), err

    return generate


def sentence(err: str) -> str:
    """What is said at the end, which is one line of ours; a progress bar may stand before it."""
    assert "Traceback" not in err
    last = err.strip().splitlines()[-1]
    assert last.startswith("sdxl_optim: ")
    return last


def notes(told: dict, feature: str) -> list[str]:
    return [note["text"] for note in told["report"]["notes"] if note["feature"] == feature]


def with_unet(folder: Path, **config) -> UNet2DConditionModel:
    """Give the model a UNet of random weights with another configuration."""
    torch.manual_seed(0)
    before = UNet2DConditionModel.load_config(folder / "unet")
    unet = UNet2DConditionModel.from_config({**before, **config}).eval()
    unet.save_pretrained(folder / "unet")
    return unet


def changed(file: Path, **values) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text("utf-8")), **values}), "utf-8")


# --- a UNet without a middle block


@pytest.mark.parametrize("options", [(), ("--deepcache.cache_branch_id", "4", "--cfg_cutoff"), ("--freeu",)])
def test_deepcache_works_on_a_unet_without_a_middle_block(generate, odd, options):
    with_unet(odd, mid_block_type=None)
    stock, _ = generate(odd)
    told, _ = generate(odd, "--deepcache", *options)
    (happened,) = told["report"]["passes"]
    assert (happened["full"], happened["cached"], happened["as_predicted"]) == (4, 8, True)
    pictures = [np.asarray(Image.open(one["files"][0])) for one in (stock, told)]
    assert not np.array_equal(*pictures)


def test_deepcache_reuses_the_deepest_block_of_a_unet_without_a_middle_block(odd):
    from sdxl_optim.hosts.standalone.generate import Models, Request
    from sdxl_optim.hosts.standalone.generate import generate as make
    from sdxl_optim.settings import from_dict

    with_unet(odd, mid_block_type=None)
    pipe, ran = StableDiffusionXLPipeline.from_pretrained(odd), []
    forwards = {name: vars(module).get("forward") for name, module in pipe.unet.named_modules()}
    hook = pipe.unet.down_blocks[-1].resnets[0].register_forward_pre_hook(lambda *_: ran.append(1))
    make(Models(pipe), Request("a bee", steps=12, width=64, height=64), from_dict({"deepcache": {"enabled": True}}))
    hook.remove()
    inside = pipe.unet.down_blocks[-1].resnets[0].conv1
    assert forwards == dict.fromkeys(forwards)
    assert "forward" not in vars(inside)
    assert len(ran) == 4


# --- UNets that take more than latents


@pytest.mark.parametrize("channels", [9, 8, 5])
def test_a_unet_that_takes_more_than_latents_is_one_sentence(generate, odd, channels):
    with_unet(odd, in_channels=channels)
    _, err = generate(odd, code=2)
    assert re.search(rf"--model: .*odd' is not allowed; .*text-to-image model.* takes {channels}", sentence(err))


@pytest.mark.parametrize("channels", [9, 8])
def test_so_is_a_single_file_of_that_kind_before_anything_is_read_or_fetched(generate, tmp_path, channels):
    file = tmp_path / "inpainting.safetensors"
    save_file({FIRST_LAYER: torch.zeros(8, channels, 3, 3)}, file)
    _, err = generate(file, code=2)
    assert re.search(rf"--model: .*text-to-image model.* takes {channels}", sentence(err))


def test_a_refiner_that_takes_more_than_latents_is_one_sentence(generate, models, tmp_path):
    shutil.copytree(models / "refiner", tmp_path / "odd")
    with_unet(tmp_path / "odd", in_channels=9)
    _, err = generate(models / "base", "--refiner", str(tmp_path / "odd"), code=2)
    assert "--refiner: " in sentence(err)


@pytest.mark.parametrize("part", ["vae", "unet", "text_encoder_2"])
def test_a_model_that_lacks_a_part_is_one_sentence(generate, odd, part):
    changed(odd / "model_index.json", **{part: [None, None]})
    _, err = generate(odd, code=2)
    assert "--model: " in sentence(err)


# --- what a scheduler or a pipeline refuses


@pytest.mark.parametrize("steps", [60, 150])
def test_more_steps_than_lcm_takes_is_one_sentence_with_the_most(generate, models, steps):
    _, err = generate(models / "base", "--sampler", "lcm", "--steps", str(steps), code=2)
    assert f"--steps: {steps} is not allowed; allowed: 50 or fewer with LCMScheduler" in sentence(err)


def test_the_most_is_the_models_own(generate, odd):
    changed(odd / "scheduler" / "scheduler_config.json", original_inference_steps=8)
    _, err = generate(odd, "--sampler", "lcm", code=2)
    assert "allowed: 8 or fewer" in sentence(err)


def test_so_it_is_in_a_process_of_its_own(models, tmp_path):
    argv = [sys.executable, "-m", "sdxl_optim", "generate", "--model", str(models / "base"), *SHORT]
    argv += ["--sampler", "lcm", "--steps", "60", "--out", str(tmp_path / "out")]
    done = subprocess.run(argv, cwd=Path(cli.__file__).parents[2], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert "50 or fewer" in sentence(done.stderr)


@pytest.mark.parametrize("sampler", ["pndm", "dpm2", "dpm2-a"])
def test_a_prediction_type_that_a_sampler_lacks_is_one_sentence(generate, models, sampler):
    _, err = generate(models / "base", "--sampler", sampler, "--prediction-type", "sample", code=2)
    assert "StableDiffusionXLPipeline can't do this: prediction_type" in sentence(err)


@pytest.mark.parametrize("key", ["cross_attention_dim", "projection_class_embeddings_input_dim"])
def test_parts_that_do_not_fit_are_one_sentence(generate, odd, key):
    config = json.loads((odd / "unet" / "config.json").read_text("utf-8"))
    with_unet(odd, **{key: config[key] + 8})
    _, err = generate(odd, code=2)
    assert "StableDiffusionXLPipeline can't do this: " in sentence(err)


def calibrate(model: Path, folder: Path) -> int:
    (folder / "prompts.txt").write_text("a bee\n", "utf-8")
    argv = ["calibrate", str(model), "--levels", "4", "--device", "cpu", "--prompts", str(folder / "prompts.txt")]
    return cli.main(argv)


@pytest.mark.parametrize("key", ["cross_attention_dim", "projection_class_embeddings_input_dim"])
def test_so_it_is_for_a_calibration(odd, tmp_path, capsys, key):
    config = json.loads((odd / "unet" / "config.json").read_text("utf-8"))
    with_unet(odd, **{key: config[key] + 8})
    assert calibrate(odd, tmp_path) == 2
    assert "StableDiffusionXLPipeline can't do this: " in sentence(capsys.readouterr().err)


def test_a_unet_without_a_middle_block_is_calibrated(odd, tmp_path, capsys):
    with_unet(odd, mid_block_type=None)
    assert calibrate(odd, tmp_path) == 0
    assert Path(capsys.readouterr().out.strip()).is_file()


def test_an_error_of_our_own_keeps_its_traceback(generate, models, monkeypatch):
    from sdxl_optim.hosts.standalone.run import DiffusersRun

    monkeypatch.setattr(DiffusersRun, "guidance_scale", None)
    with pytest.raises(TypeError):
        generate(models / "base")


# --- prompts that are cut


@pytest.mark.parametrize(("n", "left"), [(75, None), (76, "x"), (80, "xyzab")])
def test_a_prompt_beyond_77_tokens_is_a_note_with_what_is_left_out(generate, models, n, left):
    text = "".join("abcdefghijklmnopqrstuvwxyz"[i % 26] for i in range(n))  # a byte is a token here
    told, _ = generate(models / "base", "--prompt", text, "--steps", "2")
    said = notes(told, "prompt")
    words = "longer than the 75 tokens that the text encoders read; left out: “{}”"
    assert said == ([words.format(left)] if left else [])


def test_a_negative_prompt_is_noted_where_it_is_read(generate, models):
    long = ("--negative", "x" * 90, "--steps", "2")
    told, _ = generate(models / "base", *long)
    assert "left out: “" + "x" * 15 in notes(told, "negative prompt")[0]
    assert notes(told, "prompt") == []
    told, _ = generate(models / "base", *long, "--cfg", "1")
    assert notes(told, "negative prompt") == []


def test_prompts_of_a_file_are_noted_each(models, tmp_path, capsys):
    (tmp_path / "prompts.txt").write_text(f"{'a' * 77}\na bee\n{'b' * 78}\n", "utf-8")
    argv = ["generate", "--model", str(models / "base"), *SHORT[2:], "--steps", "2", "--out", str(tmp_path / "out")]
    assert cli.main([*argv, "--prompts", str(tmp_path / "prompts.txt")]) == 0
    out = capsys.readouterr().out
    assert re.findall(r"^prompt note: .*left out: “(.*)”$", out, re.M) == ["aa", "bbb"]


# --- a UNet that gives NaN


def with_nan(folder: Path, cls, part: str, name: str) -> None:
    model = cls.from_pretrained(folder / part)
    with torch.no_grad():
        model.get_parameter(name).fill_(float("nan"))
    model.save_pretrained(folder / part)


@pytest.mark.parametrize(
    "options", [(), ("--vae.precision", "bf16"), ("--deepcache", "--cfg_cutoff"), ("--batch", "2")]
)
def test_nan_of_the_unet_is_named_as_its_own_and_nothing_is_written(generate, odd, options, monkeypatch):
    decoded = []
    monkeypatch.setattr(AutoencoderKL, "decode", lambda *args, **more: decoded.append(1))
    with_nan(odd, UNet2DConditionModel, "unet", "conv_out.bias")
    _, err = generate(odd, *options, code=1)
    assert sentence(err).startswith("sdxl_optim: the UNet (call 1) gave NaN")
    assert "computed again" not in err
    assert decoded == []


def test_nan_of_a_file_of_prompts_and_of_the_refiner(models, odd, tmp_path, generate, capsys):
    with_nan(odd, UNet2DConditionModel, "unet", "conv_out.bias")
    (tmp_path / "prompts.txt").write_text("a bee\na fox\n", "utf-8")
    argv = ["generate", "--model", str(odd), *SHORT[2:], "--out", str(tmp_path / "out")]
    assert cli.main([*argv, "--prompts", str(tmp_path / "prompts.txt")]) == 1
    assert "the UNet (call 1) gave NaN" in sentence(capsys.readouterr().err)
    shutil.copytree(models / "refiner", tmp_path / "refiner")
    with_nan(tmp_path / "refiner", UNet2DConditionModel, "unet", "conv_out.bias")
    _, err = generate(models / "base", "--refiner", str(tmp_path / "refiner"), "--switch-at", "0.5", code=1)
    assert "the UNet (call 6) gave NaN" in sentence(err)


def test_nan_of_the_text_encoder_is_not_the_unets(generate, odd):
    from transformers import CLIPTextModelWithProjection

    with_nan(odd, CLIPTextModelWithProjection, "text_encoder_2", "text_model.embeddings.position_embedding.weight")
    _, err = generate(odd, code=1)
    assert "the text encoder gave NaN" in sentence(err)


def test_nan_of_a_sampler_is_not_the_unets(generate, odd):
    file = odd / "scheduler" / "scheduler_config.json"
    changed(file, rescale_betas_zero_snr=True, timestep_spacing="trailing", clip_sample=False)
    _, err = generate(odd, "--sampler", "ddim", code=1)  # the noise's share is 1: epsilon is divided by no signal
    assert "the sampler (call 1) gave NaN or infinity, so no picture is made; another sampler" in sentence(err)


def test_a_benchmark_fails_the_rows_that_are_nan(odd, tmp_path, capsys):
    with_nan(odd, UNet2DConditionModel, "unet", "conv_out.bias")
    (tmp_path / "prompts.txt").write_text("a bee\n", "utf-8")
    argv = ["bench", "--model", str(odd), *SHORT[4:], "--steps", "2", "--runs", "1", "--warm-up", "0"]
    argv += ["--prompts", str(tmp_path / "prompts.txt"), "--cases", "freeu", "--out", str(tmp_path / "out")]
    assert cli.main(argv) == 1
    assert "failed: the UNet (call 1) gave NaN" in capsys.readouterr().out


def test_a_calibration_of_nan_is_not_written(odd, tmp_path, capsys):
    with_nan(odd, UNet2DConditionModel, "unet", "conv_out.bias")
    assert calibrate(odd, tmp_path) == 1
    assert "the UNet gave NaN" in sentence(capsys.readouterr().err)
    assert not list(tmp_path.rglob("*.deepcache.json"))
    assert not list(odd.glob("deepcache*"))


# --- the tiny decoder on latents with a mean and deviation of their own


@pytest.mark.parametrize(
    ("mean", "std", "scale"),
    [
        ([-1.6574, 1.886, -1.383, 2.5155], [8.4927, 5.9022, 6.5498, 5.2299], 0.5),  # Playground v2.5
        ([0.0] * 4, [1 / 0.13025] * 4, 1.0),  # SDXL's own, said otherwise
        ([1.0, 0.0, 0.0, -1.0], [1.0, 2.0, 3.0, 4.0], 0.13025),
    ],
)
@pytest.mark.parametrize("together", [False, True])
def test_the_tiny_decoder_is_given_sdxls_latents(models, odd, tmp_path, capsys, mean, std, scale, together):
    changed(odd / "vae" / "config.json", latents_mean=mean, latents_std=std, scaling_factor=scale)
    pipe = StableDiffusionXLPipeline.from_pretrained(odd)
    generator = [torch.Generator().manual_seed(0)]
    latents = pipe(
        "a bee", num_inference_steps=2, width=64, height=64, generator=generator, output_type="latent"
    ).images
    mean, std = (torch.tensor(of).view(1, 4, 1, 1) for of in (mean, std))
    with torch.no_grad():
        vae = AutoencoderTiny.from_pretrained(models / "tiny")
        decoded = vae.decode((latents / scale * std + mean) * 0.13025).sample
    expected = np.asarray(pipe.image_processor.postprocess(decoded)[0], int)
    (tmp_path / "prompts.txt").write_text("a bee\n", "utf-8")
    argv = ["generate", "--model", str(odd), *SHORT[2:], "--steps", "2", "--out", str(tmp_path / "out"), "--json"]
    argv += ["--prompts", str(tmp_path / "prompts.txt")] if together else ["--prompt", "a bee"]
    assert cli.main([*argv, "--vae.decoder", "tiny", "--tiny-vae", str(models / "tiny")]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["report"]["decoder"] == "Tiny VAE"
    assert "brought to SDXL's" in notes(told, "Tiny VAE")[0]
    assert np.abs(np.asarray(Image.open(told["files"][0]), int) - expected).max() <= 1


# --- schedules: v-prediction, zero terminal SNR, timestep spacing


@pytest.fixture
def single_file(monkeypatch, tmp_path):
    """single_file(*keys) → a file with these keys, which loads as the tiny base model; its scheduler is kept."""

    def single_file(*keys: str) -> Path:
        save_file({key: torch.zeros(1) for key in (*keys, "weights")}, tmp_path / "model.safetensors")
        return tmp_path / "model.safetensors"

    pipe = tiny.tiny_base()
    monkeypatch.setattr(StableDiffusionXLPipeline, "from_single_file", lambda *args, **more: pipe)
    monkeypatch.setattr(loading, "try_to_load_from_cache", lambda *args: "here")
    single_file.pipe = pipe
    return single_file


def schedule(pipe) -> tuple:
    names = ("prediction_type", "rescale_betas_zero_snr", "timestep_spacing")
    return tuple(pipe.scheduler.config[name] for name in names)


@pytest.mark.parametrize(
    ("keys", "options", "expected"),
    [
        ((), (), ("epsilon", False, "leading")),
        (("v_pred",), (), ("v_prediction", False, "leading")),
        (("v_pred", "ztsnr"), (), ("v_prediction", True, "trailing")),
        (("v_pred", "ztsnr"), ("--sampler", "ddim"), ("v_prediction", True, "trailing")),
        (("v_pred",), ("--prediction-type", "epsilon"), ("epsilon", False, "leading")),
        ((), ("--prediction-type", "v_prediction"), ("v_prediction", False, "leading")),
        ((), ("--timestep-spacing", "trailing", "--sampler", "euler-a"), ("epsilon", False, "trailing")),
        (("v_pred", "ztsnr"), ("--timestep-spacing", "linspace"), ("v_prediction", True, "linspace")),
    ],
)
def test_a_single_file_says_how_it_was_trained_and_options_go_before_it(generate, single_file, keys, options, expected):
    told, _ = generate(single_file(*keys), "--steps", "2", *options)
    assert schedule(single_file.pipe) == expected
    assert notes(told, "sampler") == []
    assert told["report"]["passes"][0]["as_predicted"]


@pytest.mark.parametrize("sampler", ["heun", "dpm2", "dpm2-a", "dpm++-2s", "pndm"])
def test_a_sampler_without_zero_terminal_snr_says_so(generate, single_file, sampler):
    told, _ = generate(single_file("v_pred", "ztsnr"), "--steps", "4", "--sampler", sampler)
    assert f"{sampler} has no zero terminal SNR, which this model was trained with" in notes(told, "sampler")[0]
    assert single_file.pipe.scheduler.config.prediction_type == "v_prediction"


@pytest.mark.parametrize("sampler", ["euler", "euler-a", "dpm++-2m", "ddim", "unipc", "lcm"])
def test_the_others_have_it_and_say_nothing(generate, single_file, sampler):
    told, _ = generate(single_file("v_pred", "ztsnr"), "--steps", "4", "--sampler", sampler)
    assert notes(told, "sampler") == []
    assert schedule(single_file.pipe) == ("v_prediction", True, "trailing")
    assert single_file.pipe.scheduler.timesteps[0] == 999


def test_a_folder_that_was_trained_with_it_is_noted_too(generate, odd):
    changed(odd / "scheduler" / "scheduler_config.json", rescale_betas_zero_snr=True, prediction_type="v_prediction")
    told, _ = generate(odd, "--steps", "4", "--sampler", "heun")
    assert "zero terminal SNR" in notes(told, "sampler")[0]


def test_a_spacing_that_a_sampler_lacks_is_noted(generate, models):
    told, _ = generate(models / "base", "--steps", "4", "--sampler", "dpm++-2s", "--timestep-spacing", "trailing")
    assert notes(told, "sampler") == [
        "dpm++-2s has timesteps of its own; trailing ones are to be had with other samplers"
    ]


LOADED = """
import sys, torch
from sdxl_optim.hosts.standalone.models import load_base
for name in sys.argv[1:]:
    config = load_base(name, torch.device("cpu"), torch.float32).scheduler.config
    print(config.prediction_type, config.rescale_betas_zero_snr, config.timestep_spacing)
"""


@pytest.mark.slow
def test_real_single_files_load_offline_with_their_schedules(tmp_path):
    """The demo model's checkpoint, with the configuration in a cache of the hub as diffusers leaves it there."""
    export = pytest.importorskip("demo_model.export")
    export.write_diffusers(tmp_path / "folder")
    repository = tmp_path / "home" / "hub" / "models--stabilityai--stable-diffusion-xl-base-1.0"
    for file in [*(tmp_path / "folder").rglob("*.json"), *(tmp_path / "folder").rglob("*.txt")]:
        kept = repository / "snapshots" / ("0" * 40) / file.relative_to(tmp_path / "folder")
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, kept)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40, "utf-8")
    files = [str(tmp_path / f"{k}.safetensors") for k in range(3)]
    for file, keys in zip(files, ((), ("v_pred",), ("v_pred", "ztsnr")), strict=True):
        save_file(export.webui_checkpoint() | {key: torch.zeros(1) for key in keys}, file)
    offline = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    offline = {name: value for name, value in offline.items() if name not in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE")}
    argv = [sys.executable, "-c", LOADED, *files]
    done = subprocess.run(argv, cwd=Path(cli.__file__).parents[2], env=offline, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["epsilon False leading", "v_prediction False leading",
                                        "v_prediction True trailing"], done.stderr  # fmt: skip


# --- single files offline


class Offline:
    def model_info(self, name: str, timeout: int):
        raise OSError(f"no way to {name}")


@pytest.mark.parametrize(
    ("key", "source"),
    [
        ("weights", "stabilityai/stable-diffusion-xl-base-1.0"),
        ("edm_mean", "playgroundai/playground-v2.5-1024px-aesthetic"),
        ("conditioner.embedders.0.model.transformer.resblocks.9.mlp.c_proj.bias",
         "stabilityai/stable-diffusion-xl-refiner-1.0"),
    ],
)  # fmt: skip
def test_a_single_file_offline_says_what_is_fetched_once_and_how_to_bring_it(
    generate, tmp_path, monkeypatch, key, source
):
    monkeypatch.setattr(loading, "try_to_load_from_cache", lambda *args: None)
    monkeypatch.setattr(loading, "HfApi", Offline)
    file = tmp_path / "model.safetensors"
    save_file({key: torch.zeros(1)}, file)
    said = sentence(generate(file, code=2)[1])
    assert f"configuration, that of {source}, is on this machine" in said
    assert "fetched from the Hugging Face hub once" in said
    assert f"no way to {source}" in said
    assert f"models--{source.replace('/', '--')}" in said
