"""The demo model as shipped: it draws, the check can tell, and every host gets its files."""

import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from demo_model import captions, check, data
from demo_model.check import caption_check
from demo_model.evaluate import ssim
from demo_model.export import WEIGHTS, write_webui
from sdxl_optim import cli
from sdxl_optim.hosts.standalone.demo_model import files

MEGABYTE = 10**6


def rendered(scene: data.Scene) -> torch.Tensor:
    """[3, 256, 256], 0 to 1."""
    row, _ = data.rasterise(scene, random.Random(0), vary=False)
    return data.render(torch.from_numpy(row)[None])[0]


def scene(shape: str, colour: str, cell: str, background: str = "gray") -> data.Scene:
    return data.Scene((data.Thing(shape, colour, data.CELLS.index(cell), "large"),), background)


def test_what_is_shipped_is_small():
    assert sum(path.stat().st_size for path in WEIGHTS.iterdir()) < 24 * MEGABYTE


def test_the_check_passes_rendered_scenes_and_fails_them_under_other_captions():
    rng = random.Random(7)
    told = [(s, captions.caption(s, rng, full=True).text) for s in (data.sample_scene(rng) for _ in range(24))]
    right = [caption_check(rendered(s), text).passed for s, text in told]
    swapped = [caption_check(rendered(s), told[i - 1][1]).passed for i, (s, _) in enumerate(told)]
    assert sum(right) >= 22
    assert sum(swapped) <= 2


@pytest.mark.parametrize(
    "prompt",
    ["a blue heart at the top", "a red star at the top", "a red heart on the left", "a red heart and a blue heart"],
)
def test_the_check_minds_colour_shape_place_and_number(prompt):
    picture = rendered(scene("heart", "red", "top"))
    assert caption_check(picture, "a large red heart at the top").passed
    assert not caption_check(picture, prompt).passed


def test_the_check_takes_arrays_and_images():
    picture = rendered(scene("circle", "blue", "centre"))
    array = (picture.permute(1, 2, 0) * 255).round().byte().numpy()
    image = pytest.importorskip("PIL.Image").fromarray(array).resize((128, 128))
    for form in (picture, array, image):
        assert caption_check(form, "a blue circle in the center").passed


def test_a_picture_of_nothing_fails():
    verdict = caption_check(torch.full((3, 256, 256), 0.5), "a red circle on the left")
    assert not verdict.passed
    assert verdict.missing == (check.Named("circle", "red", data.CELLS.index("left")),)


def test_ssim_is_scikit_images():
    metrics = pytest.importorskip("skimage.metrics")
    a, b = rendered(scene("ring", "green", "right")), rendered(scene("ring", "blue", "right"))
    arrays = [x.permute(1, 2, 0).numpy() for x in (a, b)]
    options = {"channel_axis": 2, "data_range": 1.0, "gaussian_weights": True, "use_sample_covariance": False}
    full = metrics.structural_similarity(*arrays, **options, full=True)[1][5:-5, 5:-5].mean()
    assert ssim(a[None], b[None]).item() == pytest.approx(full, abs=1e-4)


@pytest.mark.parametrize("folders", [["models"], ["modules", "models"], ["models/Stable-diffusion", "embeddings"]])
def test_the_command_takes_a_webuis_folder_and_that_of_its_data(tmp_path, capsys, folders):
    for folder in folders:
        (tmp_path / folder).mkdir(parents=True)
    assert cli.main(["demo-model", "--webui", str(tmp_path)]) == 0
    said = capsys.readouterr().out.splitlines()
    checkpoint = tmp_path.resolve() / "models" / "Stable-diffusion" / "sdxl-optim-demo.safetensors"
    assert str(checkpoint) in said
    assert all(Path(path).exists() for path in said)


def test_a_webuis_folder_has_models(tmp_path, capsys):
    (tmp_path / "modules").mkdir()
    assert cli.main(["demo-model", "--webui", str(tmp_path)]) == 2
    assert "--webui: " in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["modules"]


def test_the_webui_gets_all_files_in_their_places(tmp_path):
    (tmp_path / "modules").mkdir()
    (tmp_path / "models").mkdir()
    written = {path.relative_to(tmp_path.resolve()).as_posix() for path in write_webui(tmp_path)}
    checkpoints = "models/Stable-diffusion/sdxl-optim-demo"
    assert written == {
        *(f"{checkpoints}{part}.{end}" for part in ("", "-refiner") for end in ("safetensors", "yaml")),
        "models/VAE-taesd/taesdxl_decoder.pth",
        "models/VAE-taesd/taesdxl_encoder.pth",
        "models/sdxl-optim-demo/clip",
        "models/Stable-diffusion/sdxl-optim-demo.deepcache.json",
    }


def test_another_models_tiny_vae_stays(tmp_path, caplog):
    (tmp_path / "modules").mkdir()
    theirs = tmp_path.resolve() / "models" / "VAE-taesd" / "taesdxl_decoder.pth"
    theirs.parent.mkdir(parents=True)
    theirs.write_bytes(b"the user's")
    for _ in range(2):  # the demo model's own encoder is written again
        written = write_webui(tmp_path)
        assert theirs.read_bytes() == b"the user's"
        assert theirs not in written
        assert theirs.with_name("taesdxl_encoder.pth") in written
    assert caplog.text.count("stays") == 2


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ([], "--webui or --out: None is not allowed; allowed: at least one of the two, with a folder"),
        (["--webui", "{folder}"], "allowed: a WebUI's own folder or that of its --data-dir, which has a folder models"),
        (["--out", "{file}"], "--out: '{file}' is not allowed; allowed: a folder that can be written to"),
        (["--out", "{file}/x"], "--out: '{file}/x' is not allowed; allowed: a folder that can be written to"),
    ],
)
def test_the_command_says_what_is_wrong(tmp_path, capsys, options, sentence):
    (tmp_path / "file").write_text("")
    names = {"folder": tmp_path, "file": tmp_path / "file"}
    assert cli.main(["demo-model", *(o.format(**names) for o in options)]) == 2
    assert sentence.format(**names) in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.fixture
def without_the_demo_model(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "demo_model"]:
        monkeypatch.setitem(sys.modules, name, None)


def test_without_it_the_command_says_where_it_is(without_the_demo_model, tmp_path, capsys):
    assert cli.main(["demo-model", "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == (
        "sdxl_optim: the demo model is not part of the installed extension; a clone of the project has it in"
        " demo_model/\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_without_it_demo_and_bench_draw_by_random_weights_and_say_so(without_the_demo_model, caplog):
    pytest.importorskip("diffusers")
    from sdxl_optim.hosts.standalone import demo

    models, about = demo.demo_models(torch.device("cpu"), torch.float32)
    assert "random weights" in about
    assert not models.prompts
    assert "the demo model is not part of the installed extension" in caplog.text


def test_what_lacks_inside_it_is_not_taken_for_its_absence(monkeypatch):
    monkeypatch.delitem(sys.modules, "demo_model.export")
    monkeypatch.delattr("demo_model.export")
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(ModuleNotFoundError, match=r"safetensors\.torch"):
        files()


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    pytest.importorskip("diffusers")
    pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("model")
    assert cli.main(["demo-model", "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def pipe(written):
    from diffusers import StableDiffusionXLPipeline

    pipe = StableDiffusionXLPipeline.from_pretrained(written / "base", torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("prompt", ["a large red circle in the center", "a yellow star on the left"])
def test_it_draws_what_it_is_told(pipe, prompt):
    seed = torch.Generator("cpu").manual_seed(0)
    image = pipe(prompt, num_inference_steps=20, guidance_scale=5.0, generator=seed).images[0]
    assert image.size == (256, 256)
    assert caption_check(image, prompt).passed


@pytest.mark.slow
@torch.no_grad()
def test_the_tiny_vae_decodes_as_the_vae_does(written, pipe):
    from diffusers import AutoencoderTiny

    tiny = AutoencoderTiny.from_pretrained(written / "tiny-vae")
    rng = random.Random(5)
    pictures = torch.stack([rendered(data.sample_scene(rng)) for _ in range(4)])
    latents = pipe.vae.encode(pictures * 2 - 1).latent_dist.mode()
    whole = (pipe.vae.decode(latents).sample / 2 + 0.5).clamp(0, 1)
    quick = (tiny.decode(latents * pipe.vae.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1)
    assert ssim(whole, pictures).mean() > 0.9
    assert ssim(quick, whole).mean() > 0.9


def test_the_refiner_keeps_the_picture(written, pipe):
    from diffusers import StableDiffusionXLImg2ImgPipeline

    refiner = StableDiffusionXLImg2ImgPipeline.from_pretrained(written / "refiner", torch_dtype=torch.float32)
    refiner.set_progress_bar_config(disable=True)
    picture = rendered(scene("square", "blue", "left"))[None]
    seed = torch.Generator("cpu").manual_seed(0)
    options = {"strength": 0.2, "num_inference_steps": 20, "generator": seed, "output_type": "np"}
    refined = refiner("a large blue square on the left", image=picture, **options).images
    assert ssim(torch.from_numpy(np.moveaxis(refined, -1, 1)).float(), picture).item() > 0.7
