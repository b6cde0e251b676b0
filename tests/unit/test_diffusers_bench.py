"""The benchmark over diffusers: the article's rows on tiny models, each change undone, and the command line."""

import itertools
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("diffusers")
pytest.importorskip("DeepCache")

import torch

from sdxl_optim import cli
from sdxl_optim.backends.pool import ExecutionPool
from sdxl_optim.backends.rewrites.weight_layout import AppliedLayout, WeightLayout
from sdxl_optim.bench.article import article_cases
from sdxl_optim.bench.cases import Case, Prompt
from sdxl_optim.bench.results import Results
from sdxl_optim.bench.runner import Runner
from sdxl_optim.cli import bench as bench_command
from sdxl_optim.hosts.standalone import backend, demo, memory, request_facts, tiny
from sdxl_optim.hosts.standalone.bench import DiffusersHost
from sdxl_optim.hosts.standalone.changes import CHANGES
from sdxl_optim.hosts.standalone.generate import Models, Request

PROMPT = Prompt("fox", "a fox", 7)


@pytest.fixture(scope="module")
def host():
    base = tiny.tiny_base()
    refiner = tiny.tiny_refiner()
    refiner.vae = base.vae
    return DiffusersHost(Models(base, refiner, tiny.tiny_taesd()), Request("", steps=4, width=64, height=64), "tiny")


def stock(host):
    return np.asarray(host.make(Case("Stock"), PROMPT)[0])


@pytest.mark.slow
def test_the_articles_rows_run_or_say_why(host, tmp_path):
    cases = {case.name: case for case in article_cases()}
    left_out = ("Refiner, 30", "Refiner, 40", "Refiner, 50", "torch.compile")  # which would take long
    chosen = [c for name, c in cases.items() if not name.startswith(left_out)]
    results = Results.create(tmp_path, "bench")
    Runner(host, results, chosen, [PROMPT]).run()
    rows = {row.case: row for row in results.rows()}
    assert list(rows) == [case.name for case in chosen]
    why = {name: row.notes for name, row in rows.items() if row.seconds is None}
    assert all(note.startswith("not run: ") for note in why.values())
    if not torch.cuda.is_available():
        assert {"FP32", "TF32", "Model CPU offload", "Sequential CPU offload", "TensorRT"} <= set(why)
        assert why["Stable Fast"] == "not run: stable-fast: needs an NVIDIA GPU"
        assert why["OneDiff + Tiny VAE + CFG off at 75 % + 30 steps"] == "not run: onediff: needs a CUDA device"
        assert why["Model CPU offload"] == "not run: there is no GPU here whose memory it could save"
    ran = {name: row for name, row in rows.items() if row.seconds}
    assert {"Stock", "DeepCache", "FreeU", "Tiny VAE", "Channels-last", "VAE tiling", "15 steps"} <= set(ran)
    assert ran["Batch processing"].mad == 0
    assert all(row.seconds > row.sampling_seconds > 0 for row in ran.values())
    assert (ran["CFG off at 50 %"].rows, ran["CFG off at 50 %"].stock_rows) == (6, 8)
    assert (ran["DeepCache"].full, ran["DeepCache"].cached) == (2, 2)
    assert ran["Tiny VAE"].decoder == "Tiny VAE"
    assert ran["Refiner, 20 steps, from 0.8"].calls == 20
    assert ran["Refiner, 20 steps, image-to-image 10"].calls == 20 + 3
    assert ran["Stock"].mad == 0 < ran["Refiner, 20 steps, from 0.8"].mad


@pytest.mark.parametrize("name", [name for name, change in CHANGES.items() if name])
def test_a_change_is_undone(host, name):
    models = host.models
    if reason := CHANGES[name].why_not(models):
        pytest.skip(reason)
    before, unet, vae = stock(host), models.base.unet, models.base.vae
    flags = (vae.use_slicing, vae.use_tiling, unet.conv_in.weight.stride())
    with host.opened(Case(name, change=name)):
        host.make(Case(name, change=name), PROMPT)
    assert (models.base.unet, models.base.vae) == (unet, vae)
    assert flags == (vae.use_slicing, vae.use_tiling, unet.conv_in.weight.stride())
    assert np.array_equal(stock(host), before)


def test_channels_last_holds_after_a_backend_that_lays_weights_otherwise(host, monkeypatch):
    """As inductor does on CUDA: its own layout is undone with it, which must not come after the change's."""
    applied = AppliedLayout()
    WeightLayout(0).apply(host.models.base.unet, applied)
    pool = ExecutionPool(create=lambda name, cache: SimpleNamespace(release=applied.undo))
    pool.get("inductor")
    monkeypatch.setattr(backend, "executions", pool)
    seen, conv = [], host.models.base.unet.mid_block.resnets[0].conv1
    hook = conv.register_forward_pre_hook(
        lambda module, args: seen.append(module.weight.is_contiguous(memory_format=torch.channels_last))
    )
    case = Case("Channels-last", change="channels-last")
    with host.opened(case):
        host.make(case, PROMPT)
    hook.remove()
    assert seen
    assert all(seen)


def test_pictures_made_together_are_those_made_one_by_one(host):
    case = next(c for c in article_cases() if c.name == "Batch processing")
    prompts = [PROMPT, Prompt("bee", "a bee", 8)]
    with host.opened(case):
        made = host.make_together(case, prompts)
    assert len(made) == 2
    for prompt, (picture, row, _) in zip(prompts, made, strict=True):
        assert np.array_equal(picture, host.make(Case("Stock"), prompt)[0])
        assert (row.seed, row.calls, row.rows) == (prompt.seed, 4, 8)
        assert row.notes.startswith("a picture's share of 2 made together")
    assert made[0][1].seconds == made[1][1].seconds > made[0][1].sampling_seconds > 0


def test_weights_are_placed_once_a_case(host, monkeypatch):
    placed = []

    @contextmanager
    def offloaded(pipes, method):
        placed.append(method)
        yield
        placed.append("undone")

    monkeypatch.setattr(request_facts, "why_no_offload", lambda device: None)
    monkeypatch.setattr(memory, "offloaded", offloaded)
    case = next(c for c in article_cases() if c.name == "Sequential CPU offload")
    assert host.why_not(case) == ""
    with host.opened(case):
        rows = [host.make(case, PROMPT)[1] for _ in range(2)]
        assert placed == ["enable_sequential_cpu_offload"]
    assert placed[1:] == ["undone"]
    nothing_else = "Memory offload note: there is no GPU here, so nothing is saved"  # true of the test's machine
    assert [row.notes for row in rows] == [nothing_else] * 2
    host.make(case, PROMPT)
    assert len(placed) == 4


def test_a_refiner_that_has_no_part_waits_in_main_memory(host, monkeypatch):
    moved = []
    for name in ("base", "refiner"):
        pipe = getattr(host.models, name)
        monkeypatch.setattr(pipe, "to", lambda device, name=name: moved.append((name, str(device))))
    monkeypatch.setattr(host, "device", torch.device("cuda"))
    for case in (Case("Stock"), Case("r", switch_at=0.8)):
        with host.opened(case):
            pass
    assert moved == [("refiner", "cpu"), ("base", "cuda"), ("refiner", "cuda"), ("base", "cuda")]


def test_without_a_refiner_its_rows_say_so(host):
    alone = DiffusersHost(Models(host.models.base), host.template, "tiny")
    assert alone.why_not(Case("r", switch_at=0.8)) == "there is no refiner"
    assert alone.why_not(next(c for c in article_cases() if c.name == "Tiny VAE")) == "the tiny VAE is not at hand"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--cases", "nonsense"], "combination: 'nonsense' is not allowed; allowed: stock, or names joined by +"),
        (["--article", "--cases", "freeu"], "--cases: 'freeu' is not allowed; allowed: not together with --article"),
        (["--runs", "0"], "--runs: 0.0 is not allowed; allowed: an integer from 1 to 100"),
        (["--prompts", "missing.txt"], "--prompts: 'missing.txt' is not allowed; allowed: a text file"),
        (["--rows", "Stock"], "--rows: 'Stock' is not allowed; allowed: only together with --article"),
        (["--article", "--rows", "x"], "--rows: 'x' is not allowed; allowed: names of the article's rows"),
        (["--limit", "0"], "--limit: 0.0 is not allowed; allowed: an integer from 1"),
        (["--refiner", "x"], "--refiner: 'x' is not allowed; allowed: only together with --model"),
    ],
)
def test_wrong_input(args, words, capsys):
    assert cli.main(["bench", *args]) == 2
    assert words in capsys.readouterr().err


def test_compare_wants_results(tmp_path, capsys):
    assert cli.main(["compare", str(tmp_path), str(tmp_path)]) == 2
    assert "a folder that bench or the WebUI has written" in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_runs_keeps_and_compares(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(demo, "demo_models", lambda device, dtype: (demo.random_models(device, dtype), "about it"))
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("3: a fox\n4: a bird\n", "utf-8")
    size = ["--width", "64", "--height", "64", "--steps", "2", "--warm-up", "0", "--device", "cpu"]
    one, other = tmp_path / "one", tmp_path / "other"
    for out in (one, other, one):
        assert cli.main(["bench", "--cases", "cutoff 0.5", "--prompts", str(prompts), "--out", str(out), *size]) == 0
        assert capsys.readouterr().out.strip() == str((out / "report.html").resolve())
    assert [(r.case, r.seed) for r in Results(one).rows()] == [
        (case, seed) for case in ("stock", "cutoff 0.5") for seed in (3, 4)
    ]
    assert "about it" in (one / "report.html").read_text("utf-8")
    before = (one / "rows.jsonl").read_bytes()
    for name, value, of in (("cfg", "1", "cfg 5.0"), ("steps", "3", "steps 2"), ("model", "x", "model tiny SDXL")):
        assert cli.main(["bench", "--prompts", str(prompts), "--out", str(one), *size, f"--{name}", value]) == 2
        assert f"allowed: a new folder, or the conditions of this one: {of}" in capsys.readouterr().err
    assert (one / "rows.jsonl").read_bytes() == before
    assert cli.main(["compare", str(one), str(other)]) == 0
    assert "| cutoff 0.5 |" in capsys.readouterr().out


def test_a_row_that_fails_is_named(tmp_path, capsys, monkeypatch):
    def fail(self, case, prompt):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(demo, "demo_models", lambda device, dtype: (demo.random_models(device, dtype), ""))
    monkeypatch.setattr(DiffusersHost, "make", fail)
    assert cli.main(["bench", "--cases", "freeu", "--out", str(tmp_path / "out"), "--device", "cpu"]) == 1
    said = capsys.readouterr().out
    assert "stock: failed: out of memory\nfreeu: failed: out of memory\n" in said


@pytest.mark.slow
@pytest.mark.skipif(torch.__version__ < "2.2", reason="this torch computes nothing in half precision on a CPU")
def test_rows_by_name_in_parts_on_random_weights(tmp_path, capsys, monkeypatch):
    script = Path(__file__).parents[2] / "benchmarks" / "random_sdxl.py"
    written = subprocess.run([sys.executable, script, "--out", tmp_path, "--refiner", "--tiny-vae", "--tiny"])
    assert written.returncode == 0
    (tmp_path / "prompts.txt").write_text("3: a fox\n", "utf-8")
    models = ["--model", str(tmp_path / "base"), "--refiner", str(tmp_path / "refiner"), "--dtype", "bf16"]
    models += ["--tiny-vae", str(tmp_path / "tiny-vae"), "--device", "cpu", "--width", "64", "--height", "64"]
    out, few = tmp_path / "out", ["--prompts", str(tmp_path / "prompts.txt"), "--warm-up", "0", "--runs", "2"]
    command = ["bench", "--article", *models, *few, "--out", str(out), "--steps", "2"]
    clock = itertools.count(step=30)
    with monkeypatch.context() as patch:
        patch.setattr(bench_command.time, "monotonic", lambda: next(clock))
        assert cli.main([*command, "--rows", "Tiny VAE, 15 steps", "--limit", "100"]) == 0
    said = capsys.readouterr().out
    made = len(Results(out).rows())
    assert 0 < made < 6
    assert f"{6 - made} pictures are still to be made" in said
    assert cli.main([*command, "--rows", "Tiny VAE, 15 steps"]) == 0
    assert cli.main([*command, "--rows", "Refiner, 20 steps, image-to-image 10"]) == 0
    assert "still" not in capsys.readouterr().out
    rows = Results(out).rows()
    names = ["Stock", "Tiny VAE", "15 steps", "Refiner, 20 steps, image-to-image 10"]
    assert [r.case for r in rows] == [name for name in names for _ in range(2)]
    assert {r.checkpoint for r in rows} == {str(tmp_path / "base")}
    spread = {r.case: np.asarray(Results(out).picture(r.picture)).std() for r in rows}
    assert min(spread.values()) > 5, spread  # a NaN would make a black picture
    assert "| 15 steps | 2 |" in (out / "table.md").read_text("utf-8")


def test_parts_that_wait_in_main_memory_are_a_gpus(host, monkeypatch):
    """While they are offloaded, `pipe.device` is the CPU."""
    known = host.models.base
    base = SimpleNamespace(
        device=torch.device("cpu"), _execution_device=torch.device("cuda"), unet=known.unet, vae=known.vae
    )
    monkeypatch.setattr(request_facts, "auto_precision", lambda device: "fp32")  # asks the card
    facts = request_facts.request_facts(Models(base, tiny_vae=host.models.tiny_vae))
    assert facts.device == "cuda"
    assert not {"memory.offload", "memory.cudnn_tf32"} & set(facts.cannot)
