"""The command line, called in the process; its options come from the declarations."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sdxl_optim import cli
from sdxl_optim.cli import doctor, setting_options
from sdxl_optim.cli.console import say
from sdxl_optim.cli.main import make_parser
from sdxl_optim.settings import Settings, fields, from_dict, get

WANTED = ["--model", "nowhere", "--prompt", "a bee"]


def parsed(*options: str):
    return make_parser().parse_args(["generate", *WANTED, *options])


def settings_of(*options: str) -> Settings:
    return setting_options.read(parsed(*options))


# --- options and settings


def test_every_setting_with_a_choice_is_an_option_with_its_help(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")
    with pytest.raises(SystemExit) as done:
        cli.main(["generate", "--help"])
    assert done.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    told = {name: rest for name, rest in re.findall(r" --(\S+?),? (?=\[?VALUE)(.*?)(?= --\S+,? \[?VALUE|$)", text)}
    assert {"freeu.b1", "cfg_cutoff.stop", "deepcache.mode", "vae.decoder"} <= told.keys()
    for f in fields():
        declaration = f.declaration
        if f.path in (("enabled",), ("steps",)) or (declaration.kind == "choice" and len(declaration.choices) < 2):
            assert f.name not in told or f.name == "steps"
            continue
        short = {"memory.offload": "offload", "memory.weights": "weights"}
        about = told[f.path[0] if f.path[1:] == ("enabled",) else short.get(f.name, f.name.removesuffix(".enabled"))]
        words = [declaration.help, str(declaration.allowed).removesuffix(", or null")]  # null is: left out
        if not declaration.nullable:
            words.append(f"default {str(declaration.default).lower()}")
        for word in words:
            assert word in about, f.name


def test_without_options_the_defaults_hold_and_no_technique_is_on():
    assert settings_of() == from_dict({})


def test_values_arrive_converted_and_with_their_defaults():
    args = parsed("--width", "512", "--cfg", "7", "--freeu", "--preset", "fast", "--refiner-steps", "9")
    assert (args.steps, args.width, args.height, args.cfg, args.device) == (50, 512, None, 7.0, "auto")
    assert type(args.width) is int
    assert (vars(args)["freeu.enabled"], args.preset, args.refiner_steps) == (True, "fast", 9)
    assert not {"freeu.b1", "switch_at", "refiner_strength"} & vars(args).keys()  # who asks whether they are given


def test_a_null_is_given_too():
    assert parsed("--preset", "none").preset is None
    text = '{"preset": "fast"}'
    assert settings_of("--settings", text).preset == "fast"
    assert settings_of("--settings", text, "--preset", "none") == from_dict({})
    assert parsed("--width", "none").width is None


def test_options_settings_and_files_say_the_same(tmp_path):
    wanted = {"freeu": {"enabled": True, "b1": 1.2, "version": 2}, "vae": {"decoder": "tiny"}, "hires": "off"}
    file = tmp_path / "settings.json"
    file.write_text(json.dumps(wanted), "utf-8")
    expected = from_dict(wanted)
    options = ("--freeu", "--freeu.b1", "1.2", "--freeu.version", "2", "--vae.decoder", "tiny", "--hires.mode", "off")
    assert settings_of(*options) == expected
    assert settings_of("--settings", json.dumps(wanted)) == expected
    assert settings_of("--settings", str(file)) == expected


def test_an_option_goes_before_the_settings():
    given = json.dumps({"freeu": {"enabled": True, "b1": 1.2, "b2": 1.1}})
    freeu = settings_of("--settings", given, "--freeu.b1", "1.5", "--freeu.enabled", "false").freeu
    assert (freeu.enabled, freeu.b1, freeu.b2) == (False, 1.5, 1.1)


def test_options_of_the_second_pass_make_it_its_own():
    chosen = settings_of("--cfg_cutoff", "--hires.cfg_cutoff.stop", "0.2")
    assert chosen.hires.mode == "own"
    assert chosen.for_hires().cfg_cutoff.stop == 0.2


def test_switched_off_is_off():
    assert settings_of("--settings", '{"enabled": false, "freeu": {"enabled": true}}') == Settings()


@pytest.mark.parametrize("f", [f for f in fields() if f.declaration.kind == "slider" and f.path != ("steps",)])
def test_a_slider_takes_its_ends_and_nothing_beyond(f, capsys):
    for end in (f.declaration.lo, f.declaration.hi):
        assert get(settings_of(f"--{f.name}", str(end)), f.path) == end
    assert cli.main(["generate", *WANTED, f"--{f.name}", str(f.declaration.hi + 1)]) == 2
    assert str(f.declaration.allowed) in capsys.readouterr().err


# --- a console that lacks characters, an interruption, what is not installed


def test_a_file_in_an_encoding_that_lacks_characters(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "run", lambda args: say("1024×1024 · ä –") or 0)
    with (tmp_path / "out.txt").open("w", encoding="cp932") as file:
        monkeypatch.setattr("sys.stdout", file)
        assert cli.main(["doctor"]) == 0
    assert (tmp_path / "out.txt").read_text("cp932") == "1024×1024 ? ? ?\n"


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (ModuleNotFoundError("No module named 'torch'", name="torch"), 2, "torch is missing; pip install"),
        (ImportError("DLL load failed", name="torch"), 2, "DLL load failed"),
    ],
)
def test_what_ends_it_is_one_sentence(error, code, said, monkeypatch, capsys):
    def fail(args):
        raise error

    monkeypatch.setattr(doctor, "run", fail)
    assert cli.main(["doctor"]) == code
    assert capsys.readouterr().err.startswith(f"sdxl_optim: {said}")


# --- wrong input

WRONG = {
    "no model": (["generate", "--prompt", "x"], "--model"),
    "no prompt": (["generate", "--model", "x"], "--prompt"),
    "no command": ([], "generate"),
    "unknown command": (["paint"], "generate"),
    "unknown option": (["generate", *WANTED, "--freeu.b3", "1"], "--freeu.b3"),
    "abbreviated option": (["generate", *WANTED, "--ste", "1"], "--ste"),
    "empty prompt": (["generate", "--model", "x", "--prompt", " "], "--prompt.*a text"),
    "steps 0": (["generate", *WANTED, "--steps", "0"], "--steps: 0.*from 1 to 150"),
    "steps 2.5": (["generate", *WANTED, "--steps", "2.5"], "--steps: 2.5.*integer"),
    "steps nan": (["generate", *WANTED, "--steps", "nan"], "--steps: nan"),
    "steps a word": (["generate", *WANTED, "--steps", "many"], "--steps: 'many'"),
    "cfg negative": (["generate", *WANTED, "--cfg", "-1"], "--cfg: -1.*from 0 to 50"),
    "seed negative": (["generate", *WANTED, "--seed", "-1"], "--seed: -1"),
    "width odd": (["generate", *WANTED, "--width", "100"], "--width: 100.*multiple of 8"),
    "height too large": (["generate", *WANTED, "--height", "8192"], "--height: 8192.*4096"),
    "batch 0": (["generate", *WANTED, "--batch", "0"], "--batch: 0"),
    "sampler": (["generate", *WANTED, "--sampler", "magic"], "--sampler: 'magic'.*euler, euler-a, heun"),
    "device": (["generate", *WANTED, "--device", "tpu"], "--device: 'tpu'.*auto, cpu"),
    "dtype": (["generate", *WANTED, "--dtype", "int8"], "--dtype: 'int8'.*fp16"),
    "toggle": (["generate", *WANTED, "--freeu", "maybe"], "--freeu.enabled: 'maybe'.*true or false"),
    "choice": (["generate", *WANTED, "--vae.decoder", "huge"], "--vae.decoder: 'huge'.*host, full, tiny"),
    "settings no JSON": (["generate", *WANTED, "--settings", "{"], "--settings: '{'.*JSON"),
    "settings no file": (["generate", *WANTED, "--settings", "no.json"], "--settings: 'no.json'.*JSON"),
    "settings a list": (["generate", *WANTED, "--settings", __file__], "--settings"),
    "settings key": (["generate", *WANTED, "--settings", '{"freeu": {"b3": 1}}'], "freeu.b3: 1.*b1, b2"),
    "settings range": (["generate", *WANTED, "--settings", '{"freeu": {"b1": 9}}'], "freeu.b1: 9.*from 0 to 3"),
    "settings type": (["generate", *WANTED, "--settings", '{"freeu": 1}'], "freeu: 1.*object"),
    "switch-at alone": (["generate", *WANTED, "--switch-at", "0.8"], "--switch-at: 0.8.*--refiner"),
    "strength alone": (["generate", *WANTED, "--refiner-strength", "0.3"], "--refiner-strength: 0.3.*--refiner"),
    "both ways of the refiner": (
        ["generate", *WANTED, "--refiner", "x", "--refiner-strength", "0.3", "--switch-at", "0.8"],
        "--switch-at.*not together",
    ),
    "out is a file": (["generate", *WANTED, "--out", __file__], "--out.*a folder"),
    "out in a file": (["generate", *WANTED, "--out", f"{__file__}/x/y"], "--out.*a folder"),
    "demo steps": (["demo", "--steps", "1000"], "--steps: 1000"),
    "demo out": (["demo", "--out", __file__], "--out.*a folder"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_one_sentence_and_exit_code_2(case, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    argv, message = WRONG[case]
    try:
        code = cli.main(argv)
    except SystemExit as done:
        code = done.code
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    assert re.fullmatch(rf"sdxl_optim: .*{message}.*\n", err), err
    assert list(tmp_path.iterdir()) == []


def test_help_imports_nothing_heavy():
    code = "import sys; from sdxl_optim import cli\ntry: cli.main(['generate', '--help'])\nexcept SystemExit: pass\n"
    code += "sys.exit(bool({'torch', 'diffusers', 'transformers'} & set(sys.modules)))"
    subprocess.run(
        [sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL, cwd=Path(cli.__file__).parents[2]
    )


def test_a_preset_under_the_options_and_under_the_json():
    settings = settings_of("--preset", "fastest", "--deepcache.cache_interval", "5")
    assert settings == from_dict({"preset": "fastest", "deepcache": {"cache_interval": 5}})
    text = '{"preset": "fast", "deepcache": {"cache_interval": 4}}'
    assert settings_of("--settings", text, "--preset", "fastest").deepcache.cache_interval == 4
