"""Many pictures stage by stage are the pictures one by one."""

from types import SimpleNamespace

import numpy as np
import pytest

from sdxl_optim import cli
from sdxl_optim.errors import SettingsError
from sdxl_optim.hosts.standalone.generate import Models, Request, generate
from sdxl_optim.hosts.standalone.many import generate_many
from sdxl_optim.hosts.standalone.tiny import tiny_base, tiny_refiner
from sdxl_optim.settings import from_dict

SETTINGS = from_dict({"cfg_cutoff": {"enabled": True, "stop": 0.5}, "vae": {"tiling": True, "tile_size": 256}})


@pytest.fixture(scope="module")
def pipe():
    pipe = tiny_base()
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("cfg", [5.0, 1.0])
def test_the_same_pictures(pipe, cfg):
    size = {"steps": 4, "width": 64, "height": 64, "cfg": cfg}
    requests = [Request("a fox", seed=3, batch=2, **size), Request("a bee in the snow", "blurry", **size)]
    order, hooks = [], []
    for name in ("text_encoder", "unet", "vae"):
        module = getattr(pipe, name) if name != "vae" else pipe.vae.decoder
        hooks.append(module.register_forward_pre_hook(lambda *_, name=name: order.append(name)))
    many = generate_many(Models(pipe), requests, SETTINGS)
    for hook in hooks:
        hook.remove()
    assert order == sorted(order, key=["text_encoder", "unet", "vae"].index)  # each part once, whatever the number
    single = [image for request in requests for image in generate(Models(pipe), request, SETTINGS).images]
    assert len(many.images) == 3
    assert all(np.array_equal(a, b) for a, b in zip(many.images, single, strict=True))
    assert [p.as_predicted for p in many.report.all_passes] == [True, True]
    assert "maybe_free_model_hooks" not in vars(pipe)


def test_latents_of_a_mean_and_a_deviation_and_a_watermark():
    """As Playground v2.5 has them: the pipeline's own end of a single picture is what counts."""
    pipe, marked = tiny_base(), []
    pipe.watermark = SimpleNamespace(apply_watermark=lambda images: marked.append(images.shape) or 1 - images)
    pipe.vae.register_to_config(latents_mean=[0.5, -0.4, 0.3, 0.1], latents_std=[2.0, 1.5, 0.5, 1.0])
    request = Request("a fox", seed=3, steps=2, width=64, height=64)
    [many] = generate_many(Models(pipe), [request], SETTINGS).images
    [one] = generate(Models(pipe), request, SETTINGS).images
    assert len(marked) == 2
    assert np.array_equal(many, one)


def test_a_refiner_is_refused(pipe):
    with pytest.raises(SettingsError, match="refiner"):
        generate_many(Models(pipe, tiny_refiner()), [Request("a fox")], SETTINGS)


def test_by_the_command_line(pipe, tmp_path, capsys):
    pipe.save_pretrained(tmp_path / "model")
    (tmp_path / "prompts.txt").write_text("a fox\na bee\n", encoding="utf-8")
    many = ["--prompts", str(tmp_path / "prompts.txt"), "--seed", "7"]
    sampling = ["--steps", "2", "--width", "64", "--height", "64", "--device", "cpu", "--out", str(tmp_path / "out")]
    command = ["generate", "--model", str(tmp_path / "model"), *sampling]
    assert cli.main([*command, *many, "--offload", "model"]) == 0
    assert [f.name for f in sorted((tmp_path / "out").iterdir())] == ["00001-7.png", "00002-7.png"]
    assert "Memory offload refused: there is no GPU here" in capsys.readouterr().out
    for wrong in (["--prompt", "x", *many], [*many, "--refiner", "y"], []):
        assert cli.main([*command, *wrong]) == 2
        assert "--prompt" in capsys.readouterr().err
