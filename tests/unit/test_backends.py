"""The table of backends: who can run where, the switches, the compiled blocks, and OneDiff's front end."""

from __future__ import annotations

import dataclasses
import gc
import os
import weakref

import host_loop
import ldm_unet
import pytest
import torch
from host_loop import PAIR, plan_for, sample, traces

from sdxl_optim import backends
from sdxl_optim.backends import inductor
from sdxl_optim.backends.api import CannotPrepare, HostHooks
from sdxl_optim.backends.call.arguments import Arguments
from sdxl_optim.backends.call.body import UNetBody
from sdxl_optim.backends.call.capture_guard import CaptureGuard
from sdxl_optim.backends.call.foreign_hooks import global_hook, replaced_forward, why_not_capturable
from sdxl_optim.backends.environment import Environment, read_environment, version_numbers
from sdxl_optim.backends.execution import Execution
from sdxl_optim.backends.rewrites.half_precision import can_run_without_autocast, without_autocast
from sdxl_optim.cli import main
from sdxl_optim.run import Run
from sdxl_optim.sampling.call import Kind
from sdxl_optim.sampling.loop import Loop
from sdxl_optim.settings import Backend, fields
from sdxl_optim.techniques.accumulation import patch as switches

CPU = Environment((2, 1, 2), compiler="g++")
CARD = Environment(
    (2, 11, 0), cuda=True, device="Card", capability=(8, 6), memory=8 * 10**9, packages=frozenset(["triton"])
)
WINDOWS = dataclasses.replace(CARD, system="Windows", packages=frozenset())
STEPS = Loop.of_steps([1] * 4)
ALL = {
    "freeu": {"enabled": True},
    "deepcache": {"enabled": True, "cache_interval": 2},
    "cfg_cutoff": {"enabled": True, "stop": 0.5},
}


def test_the_table_is_that_of_the_settings():
    [field] = [f for f in fields() if f.path == ("backend", "name")]
    assert tuple(backends.BACKENDS) == field.declaration.choices
    assert [backends.create(name).name for name in backends.BACKENDS] == list(backends.BACKENDS)
    assert Backend().name == "eager"


@pytest.mark.parametrize(
    ("environment", "available"),
    [
        (CPU, ["eager", "inductor"]),
        (dataclasses.replace(CPU, compiler=None), ["eager"]),
        (CARD, ["eager", "cudagraph", "inductor"]),
        (WINDOWS, ["eager", "cudagraph"]),
        (dataclasses.replace(CARD, capability=(6, 1)), ["eager", "cudagraph"]),
        (dataclasses.replace(CARD, torch=(2, 0, 1)), ["eager"]),
        (dataclasses.replace(CARD, host_reason="the weights move"), ["eager"]),
        (dataclasses.replace(CARD, packages=frozenset(["onediff"])), ["eager", "cudagraph"]),
        (dataclasses.replace(CARD, packages=frozenset(["onediff", "nexfort"])), ["eager", "cudagraph", "onediff"]),
        (dataclasses.replace(CARD, packages=frozenset(["sfast"])), ["eager", "cudagraph", "stable-fast"]),
        (dataclasses.replace(CARD, packages=frozenset(["torch_tensorrt"])), ["eager", "cudagraph", "tensorrt"]),
    ],
)
def test_who_can_run_where(environment, available):
    reasons = backends.probe_all(environment)
    assert [name for name, reason in reasons.items() if reason is None] == available
    assert all(reasons[name] for name in reasons if name not in available)


def test_reasons_say_what_is_missing():
    assert backends.why_not("cudagraph", CPU) == "needs a CUDA device"
    assert "triton-windows" in backends.why_not("inductor", WINDOWS)
    assert "capability 7.0 or later; here is 6.1" in backends.why_not(
        "inductor", dataclasses.replace(CARD, capability=(6, 1))
    )
    assert "here is 2.0.1" in backends.why_not("cudagraph", dataclasses.replace(CARD, torch=(2, 0, 1)))
    assert "nexfort or oneflow" in backends.why_not(
        "onediff", dataclasses.replace(CARD, packages=frozenset(["onediff"]))
    )


def test_versions():
    assert version_numbers("2.11.0+cu130") == (2, 11, 0)
    assert version_numbers("2.1.2") == (2, 1, 2)
    assert version_numbers("2.8.0a0+git1234") < (2, 8, 1)


def test_the_doctor_lists_them_all(capsys):
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert f"torch {torch.__version__}" in out
    for name, reason in backends.probe_all(read_environment()).items():
        assert f"  {name}: {reason or 'available'}\n" in out


# --- switches


def test_fp16_accumulation_is_put_back(monkeypatch):
    class Matmul:
        allow_fp16_accumulation = False

    matmul = Matmul()
    monkeypatch.setattr(torch.backends.cuda, "matmul", matmul)
    switch = switches.fp16_accumulation()
    switch.__enter__()
    assert matmul.allow_fp16_accumulation is True
    assert not switch.__exit__(RuntimeError, RuntimeError("midway"), None)
    assert matmul.allow_fp16_accumulation is False


def test_a_torch_without_the_switch_is_named(monkeypatch):
    class Matmul:
        def __getattr__(self, name):
            raise AssertionError(f"Unknown attribute {name}")

    monkeypatch.setattr(torch.backends.cuda, "matmul", Matmul())
    assert switches.why_no_fp16_accumulation() == "needs torch 2.7 or later"


# --- what can be captured


class Waits(torch.nn.Module):
    def __init__(self, what):
        super().__init__()
        self.what = what

    def forward(self, x):
        return self.what(x)


@pytest.mark.parametrize(
    "what",
    [
        lambda x: x * float(x.sum()),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: x.cpu(),
        lambda x: x.to("cpu", copy=True),
        lambda x: torch.unique(x),
    ],
)
def test_what_waits_for_the_device_is_named(what):
    x = torch.zeros(4, device="meta")
    with pytest.raises(CannotPrepare, match=r"waits for the device|copies from"), CaptureGuard():
        what(x)


def test_what_the_host_computes_and_brings_over_is_kept():
    def embed(x):
        return torch.exp(torch.arange(3.0)).to(x.device), torch.arange(2).to(x.device)

    x, guard = torch.zeros(4, device="meta"), CaptureGuard()
    with guard:
        first = embed(x)
    with guard.replay_constants():
        second = embed(x)
    assert [id(t) for t in first] == [id(t) for t in second]
    with guard.replay_constants():
        embed(x)
        with pytest.raises(CannotPrepare, match="not do the same"):
            embed(x)


def test_half_precision_runs_bare_where_all_of_it_is():
    half, full = torch.zeros(1, dtype=torch.float16), torch.zeros(1)
    assert can_run_without_autocast(frozenset([torch.float16]), [half, torch.zeros(1, dtype=torch.int64)])
    assert not can_run_without_autocast(frozenset([torch.float16]), [half, full])
    assert not can_run_without_autocast(frozenset([torch.float16, torch.float32]), [half])
    assert not can_run_without_autocast(frozenset([torch.float32]), [full])
    assert not can_run_without_autocast(frozenset([torch.float8_e4m3fn]), [])


def test_norms_that_upcast_are_replaced_for_the_while():
    class GroupNorm32(torch.nn.GroupNorm):
        def forward(self, x):
            raise AssertionError("not in bare half")

    unet = torch.nn.Sequential(GroupNorm32(2, 4), torch.nn.GroupNorm(2, 4)).to(torch.bfloat16)
    x = torch.randn(1, 4, 3, 3).to(torch.bfloat16)
    with without_autocast(unet):
        out = unet(x)
    assert torch.equal(out, unet[1](torch.nn.functional.group_norm(x, 2, unet[0].weight, unet[0].bias)))
    assert "forward" not in vars(unet[0])


@torch.no_grad()
def test_a_unet_that_says_fp32_runs_bare_in_the_type_of_its_weights():
    unet = ldm_unet.tiny_unet("sd15").to(torch.bfloat16)
    unet.time_embed.register_forward_pre_hook(lambda _, args: (args[0].to(torch.bfloat16),))  # the host's own cast
    inputs = [t.to(torch.bfloat16) for t in ldm_unet.random_inputs(unet.config).args[:3]]
    with torch.autocast("cpu", torch.bfloat16):
        expected = unet(*inputs)
    with without_autocast(unet):
        found = unet(*inputs)
    assert found.dtype == expected.dtype
    assert (found - expected).float().norm() < 0.03 * expected.float().norm()
    assert unet.dtype == torch.float32


def test_whose_python_is_in_a_unet():
    unet = ldm_unet.tiny_unet("sdxl")
    assert why_not_capturable(unet) is None
    unet.register_forward_pre_hook(lambda module, args: None)  # outside of what is captured
    assert why_not_capturable(unet) is None
    layer = unet.middle_block[0]
    for module in (unet, layer):
        module.forward = module.forward  # as ControlNet leaves it
    assert why_not_capturable(unet) is None
    assert replaced_forward(unet) is None
    unet.forward = lambda *args: None
    assert "the UNet's forward was replaced by" in replaced_forward(unet)
    layer.forward = lambda *args: None
    assert "middle_block.0 is replaced by" in why_not_capturable(unet)
    assert why_not_capturable(unet, is_idle_patch=lambda module: module is layer) is None


def test_hooks_on_every_module_are_named():
    from torch.nn.modules.module import register_module_forward_pre_hook

    assert global_hook() is None
    handle = register_module_forward_pre_hook(lambda module, args: None)
    assert "every module is hooked by" in global_hook()
    handle.remove()
    assert global_hook() is None


# --- compiled blocks


class GraphsOnly:
    """Inductor's front end with the traced graph in place of the compiler."""

    def __init__(self):
        self.compiled = []
        self.backend = inductor.Inductor(compiler=self.compile)
        self.backend.captures = False

    def compile(self, graph, examples):
        self.compiled.append(graph)
        return graph


def outputs(unet, settings, execution=None, **more):
    found = []
    handle = unet.register_forward_hook(lambda module, args, out: found.append(out.clone()))
    with torch.no_grad(), Run(plan_for(settings, STEPS, PAIR, unet), execution=execution) as run:
        sample(unet, run, STEPS, **more)
    handle.remove()
    return found, run.report


def test_each_kind_of_block_is_compiled_once():
    unet, front, said = ldm_unet.tiny_unet("sdxl"), GraphsOnly(), []
    execution = Execution(front.backend, HostHooks(progress=said.append))
    expected, eager = outputs(unet, ALL)
    found, report = outputs(unet, ALL, execution)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(found, expected, strict=True))
    assert report.counts == eager.counts
    assert report.execution.replays == 4
    assert traces(unet) == []
    blocks = [m for m in unet.modules() if type(m).__name__ in ("ResBlock", "BasicTransformerBlock")]
    kinds = len(front.compiled)
    assert kinds < 2 * len(blocks)  # 2: with and without the uncond rows
    assert f"inductor compiles block 1 of {said[0].split()[-1]}" == said[0]
    assert said[-1] == ""
    outputs(unet, {**ALL, "deepcache": {"enabled": True, "cache_interval": 4}}, execution)
    assert len(front.compiled) == kinds
    with torch.no_grad():
        for weight in unet.parameters():
            weight.mul_(1.1)
    expected, _ = outputs(unet, ALL)
    found, _ = outputs(unet, ALL, execution)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(found, expected, strict=True))
    assert len(front.compiled) == kinds
    other = ldm_unet.tiny_unet("sdxl", seed=1)
    found, _ = outputs(other, ALL, execution)
    expected, _ = outputs(other, ALL)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(found, expected, strict=True))
    assert len(front.compiled) == kinds


def test_a_compiled_call_does_not_keep_the_unet_alive():
    unet, front = ldm_unet.tiny_unet("sdxl"), GraphsOnly()
    execution = Execution(front.backend)
    outputs(unet, {}, execution)
    layer = weakref.ref(unet.middle_block[1].transformer_blocks[0].attn2.to_k)
    del unet
    gc.collect()
    assert layer() is None
    assert len(execution) == 1


def test_blocks_of_another_structure_are_compiled_anew():
    unet, front = ldm_unet.tiny_unet("sdxl"), GraphsOnly()
    execution = Execution(
        front.backend, HostHooks(fingerprint=lambda unet: unet.middle_block[0].in_layers[2].padding_mode)
    )
    outputs(unet, {}, execution)
    kinds = len(front.compiled)
    for layer in unet.modules():
        if isinstance(layer, torch.nn.Conv2d):
            layer.padding_mode = "circular"  # the host's Tiling
    expected, _ = outputs(unet, {})
    found, _ = outputs(unet, {}, execution)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(found, expected, strict=True))
    assert len(front.compiled) > kinds


def test_hooks_of_others_inside_a_block_keep_running():
    unet, front, ran = ldm_unet.tiny_unet("sdxl"), GraphsOnly(), []
    handle = unet.middle_block[0].in_layers[2].register_forward_hook(lambda *args: ran.append(1))
    _, report = outputs(unet, {}, Execution(front.backend))
    handle.remove()
    assert report.execution.replays == 4
    assert len(ran) > 4


def test_more_sizes_than_the_cap_run_eagerly():
    unet, front = ldm_unet.tiny_unet("sdxl"), GraphsOnly()
    front.backend._shapes = {(k,) for k in range(inductor.MOST_SHAPES)}
    expected, _ = outputs(unet, {})
    found, report = outputs(unet, {}, Execution(front.backend))
    assert all(map(torch.equal, found, expected))
    assert f"{inductor.MOST_SHAPES} sizes are compiled already" in str(report.notes[0])


def test_the_cache_is_the_users_where_the_environment_names_one(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "theirs")
    monkeypatch.delenv("TRITON_CACHE_DIR", raising=False)
    with inductor.compiled_code_kept_in(tmp_path):
        assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "theirs"
        assert os.environ["TRITON_CACHE_DIR"] == str(tmp_path / "triton")
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "theirs"
    assert "TRITON_CACHE_DIR" not in os.environ
    with inductor.compiled_code_kept_in(None):
        assert "TRITON_CACHE_DIR" not in os.environ


def test_a_folder_that_torch_chose_by_itself_is_not_the_users(monkeypatch, tmp_path):
    from torch._inductor import codecache

    for name in inductor.CACHE_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    inductor.forget_folder()
    own = codecache.cache_dir()
    with inductor.compiled_code_kept_in(tmp_path):
        assert codecache.cache_dir() == str(tmp_path / "inductor")
    assert codecache.cache_dir() == own


# --- OneDiff's front end, with a runtime of the test's in its registry


def test_onediff_compiles_by_its_registry():
    compiler = pytest.importorskip("onediff.infer_compiler")
    registry = pytest.importorskip("onediff.infer_compiler.backends.registry")
    seen = []

    def runtime(module, *, options=None):
        seen.append((module, options))
        return module

    registry._BACKENDS.pop("of-the-tests", None)
    registry.register_backend("of-the-tests")(runtime)
    assert compiler.compile is not None
    unet = ldm_unet.tiny_unet("sdxl")
    backend = backends.OneDiff(runtime="of-the-tests")
    expected, _ = outputs(unet, ALL)
    found, report = outputs(unet, ALL, Execution(backend))
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(found, expected, strict=True))
    assert report.execution.replays == 4
    assert all(isinstance(module, torch.fx.GraphModule) for module, _ in seen)
    assert len(seen) == 4
    with torch.no_grad():
        for weight in unet.parameters():
            weight.mul_(1.1)
    expected, _ = outputs(unet, ALL)
    found, _ = outputs(unet, ALL, Execution(backend))
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(found, expected, strict=True))


def test_a_body_by_another_forward():
    unet = ldm_unet.tiny_unet("sdxl")
    inputs = host_loop.call_inputs(unet, 2, 0)
    arguments = Arguments(inputs.args, {})
    body = UNetBody(unet, unet.forward, arguments, Kind(), None)
    [out] = body.run(lambda x, *more: x + 1, arguments.tensors)
    assert torch.equal(out, inputs.x + 1)


def test_a_library_that_a_killed_start_left_half_written_is_compiled_again(tmp_path, monkeypatch):
    import torch._inductor

    half = tmp_path / "ab" / "cabc.so"
    half.parent.mkdir()
    half.write_bytes(b"half")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    inductor.forget_folder()

    def compiler(graph, examples, options):
        if half.exists():
            raise OSError(f"{half}: file too short")
        return graph

    monkeypatch.setattr(torch._inductor, "compile", compiler)
    assert inductor._compile("graph", [torch.zeros(1)]) == "graph"

    elsewhere = OSError(f"{tmp_path.parent / 'other.so'}: cannot open shared object file")
    monkeypatch.setattr(torch._inductor, "compile", lambda *args, **kwargs: (_ for _ in ()).throw(elsewhere))
    with pytest.raises(OSError, match=r"other\.so"):
        inductor._compile("graph", [torch.zeros(1)])
    inductor.forget_folder()
