"""The command line from end to end, on tiny models in diffusers' format."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("diffusers")
pytest.importorskip("DeepCache")

from sdxl_optim import cli
from sdxl_optim.bench.results import Results
from sdxl_optim.hosts.standalone import demo

SHORT = ["--prompt", "a bee", "--steps", "12", "--width", "64", "--height", "64", "--device", "cpu"]


@pytest.fixture
def generate(models, tmp_path, capsys):
    def generate(*options: str, code: int = 0) -> tuple[dict, str]:
        argv = ["generate", "--model", str(models / "base"), *SHORT, "--out", str(tmp_path / "out"), *options]
        capsys.readouterr()
        assert cli.main(argv) == code
        out, err = capsys.readouterr()
        return (json.loads(out) if "--json" in options and code == 0 else out), err

    return generate


def test_json_is_one_object_that_tells_everything(generate, models):
    options = ("--cfg_cutoff", "--cfg_cutoff.stop", "0.5", "--deepcache", "--freeu", "--freeu.b1", "1.2")
    told, _ = generate(*options, "--vae.decoder", "tiny", "--tiny-vae", str(models / "tiny"), "--json")
    assert told["settings"]["freeu"]["b1"] == 1.2
    (planned,), (happened,) = told["plan"], told["report"]["passes"]
    assert (planned["steps"], planned["cut_from"], planned["full"]) == (12, 6, [0, 3, 6, 9])
    assert (happened["rows"], happened["stock_rows"], happened["full"], happened["cached"]) == (18, 24, 4, 8)
    assert happened["as_predicted"] is True
    assert told["report"]["decoder"] == "Tiny VAE"
    assert {"load", "prepare", "sampling", "decode"} == set(told["seconds"])
    assert all(seconds >= 0 for seconds in told["seconds"].values())
    assert told["peak_memory_bytes"] > 2**20
    (file,) = told["files"]
    assert Image.open(file).size == (64, 64)


def test_a_seed_gives_its_picture_again_in_a_file_of_its_own(generate):
    first, again, other = (generate("--json", "--seed", s)[0]["files"][0] for s in ("5", "5", "6"))
    assert len({first, again, other}) == 3
    pictures = [np.asarray(Image.open(f)) for f in (first, again, other)]
    assert np.array_equal(pictures[0], pictures[1])
    assert not np.array_equal(pictures[0], pictures[2])


def test_a_batch_is_as_many_files(generate):
    told, _ = generate("--json", "--batch", "2", "--sampler", "dpm++-2m-karras")
    assert len(told["files"]) == 2
    assert told["report"]["passes"][0]["rows"] == 48


def test_steps_of_the_settings_replace_the_options(generate):
    told, _ = generate("--json", "--settings", '{"steps": 3}')
    assert told["plan"][0]["steps"] == 3


def test_for_people_it_is_a_few_lines_with_the_file_last(generate):
    out, _ = generate("--cfg_cutoff")
    lines = out.splitlines()
    assert any("21 of 24 rows" in line for line in lines)
    assert Path(lines[-1]).is_file()


def test_the_refiner_both_ways(generate, models):
    refiner = ("--json", "--refiner", str(models / "refiner"))
    told, _ = generate(*refiner, "--switch-at", "0.5")
    assert [p["name"] for p in told["report"]["passes"]] == ["base and refiner"]
    assert told["report"]["passes"][0]["calls"] == 12
    told, _ = generate(*refiner, "--refiner-strength", "0.5", "--refiner-steps", "6")
    assert [(p["name"], p["calls"]) for p in told["report"]["passes"]] == [("base", 12), ("refiner", 3)]


@pytest.mark.parametrize("kind", ["nothing here", "a file", "a full VAE"])
def test_a_tiny_vae_that_is_none_is_one_message_and_the_models_own_decodes(generate, models, tmp_path, kind):
    missing = models / "base" / "vae" if kind == "a full VAE" else tmp_path / kind
    if kind == "a file":
        missing.write_bytes(b"")
    told, err = generate("--json", "--vae.decoder", "tiny", "--tiny-vae", str(missing))
    assert err.count("Tiny VAE refused") == 1
    assert err.index("Tiny VAE refused") < err.index("12/12")  # the sampler's progress bar
    assert told["report"]["decoder"] == "the model's VAE"
    (note,) = told["report"]["notes"]
    assert note["refused"]
    assert str(missing) in note["text"]


@pytest.mark.parametrize("kind", ["missing", "empty", "a text file"])
def test_a_model_that_cannot_be_loaded_is_one_sentence(generate, tmp_path, kind):
    model = tmp_path / "model"
    if kind == "empty":
        model.mkdir()
    elif kind == "a text file":
        model = model.with_suffix(".safetensors")
        model.write_text("not a model")
    _, err = generate("--model", str(model), code=2)
    last = err.strip().splitlines()[-1]
    assert last.startswith(
        f"sdxl_optim: --model: {str(model)!r} is not allowed; allowed: a folder in diffusers' format"
    )
    assert not (tmp_path / "out").exists()


def test_a_refiner_is_no_base_model(generate, models):
    _, err = generate("--model", str(models / "refiner"), code=2)
    assert "a base model, which has two text encoders; a refiner goes to --refiner" in err


def test_a_switch_without_steps_for_one_model_is_one_sentence(generate, models):
    _, err = generate("--refiner", str(models / "refiner"), "--switch-at", "1", code=2)
    assert "--switch-at: 1.0 is not allowed" in err


@pytest.mark.slow
def test_demo_in_a_process_of_its_own(tmp_path):
    argv = [
        sys.executable,
        "-m",
        "sdxl_optim",
        "demo",
        "--steps",
        "4",
        "--width",
        "64",
        "--height",
        "64",
        "--device",
        "cpu",
    ]
    root = Path(cli.__file__).parents[2]
    done = subprocess.run([*argv, "--out", str(tmp_path)], cwd=root, capture_output=True, text=True, check=True)
    path = Path(done.stdout.strip().splitlines()[-1])
    assert path == tmp_path.resolve() / "report.html"
    text = path.read_text("utf-8")
    assert text.count("<img") == 24
    for word in (
        "Stars, seed 1",
        "as prompted",
        "FreeU",
        "CFG cutoff",
        "DeepCache",
        "Tiny VAE",
        "All together",
        "7 of 8 rows",
    ):
        assert word in text
    results = Results(tmp_path)
    assert len(list((tmp_path / "pictures").glob("*.png"))) == len(results.rows()) == 24
    assert all(row.as_prompted in (0, 1) for row in results.rows())
    assert {(row.full, row.cached) for row in results.rows() if row.case == "DeepCache"} == {(2, 2)}
    assert "24/24" in done.stderr


def test_the_demo_says_when_its_pictures_mean_nothing(monkeypatch):
    monkeypatch.setattr(demo, "trained_models", lambda device, dtype: None)
    from sdxl_optim.hosts.standalone.models import check_device, pick_dtype

    device = check_device("cpu")
    models, about = demo.demo_models(device, pick_dtype("auto", device))
    assert "random weights" in about
    assert models.tiny_vae is not None
