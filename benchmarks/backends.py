"""The execution backends on one GPU: full-size SDXL of the ldm layout with random weights, fp16, 1024×1024.

    python benchmarks/backends.py [--out FOLDER] [--limit SECONDS] [--only SECTION,…] [--tiny]

Each section prints its result and writes it to FOLDER/backends.json at once; one that no longer fits the limit is left
out and named. "stock" is the call under autocast as the WebUI makes it, "eager" the same in bare fp16.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import statistics
import sys
import time
import traceback
from contextlib import nullcontext
from pathlib import Path

import torch
from calls import CUDA, DEVICE, HALF, Model, bare, run_calls, same_call, wait
from graphs import Tape
from host_loop import plan_for
from kernels import kinds_of
from torch import nn

from sdxl_optim.backends.api import HostHooks
from sdxl_optim.backends.cudagraph import CudaGraph
from sdxl_optim.backends.execution import Execution
from sdxl_optim.backends.inductor import Inductor
from sdxl_optim.run import Run
from sdxl_optim.sampling.loop import Loop, Rows
from sdxl_optim.sentences import happened

TFLOP = 13.5  # of a call with two rows at 1024×1024
DEEPCACHE = {"deepcache": {"enabled": True, "cache_interval": 10}}
FASTEST = {"cfg_cutoff": {"enabled": True, "stop": 0.75}}
FASTEST_CACHED = {**FASTEST, "deepcache": {"enabled": True, "cache_interval": 3}}


def ms_of_calls(model, settings: dict, execution, rows: int, cached: bool, groups: int = 5) -> dict:
    """Median wall ms of a call, by groups of nine, and the seconds until they were ready."""
    marks: dict[int, float] = {}

    def watch(k, call):
        if k % 10 in (0, 1):
            wait()
            marks[k] = time.perf_counter()
        call()
        if k % 10 == 9:
            wait()
            marks[k] = time.perf_counter()

    run_calls(model, settings, execution, [rows] * 10, watch=watch)  # prepares
    run = run_calls(model, settings, execution, [rows] * 10 * groups, watch=watch)
    times = [1000 * (marks[10 * g + 9] - marks[10 * g + 1]) / 9 for g in range(groups)]
    if cached and run.report.counts.cached != 9 * groups:
        raise AssertionError(f"{run.report.counts}")
    if execution and run.report.execution.replays != 10 * groups:
        raise AssertionError(f"{run.report.execution} {run.report.notes}")
    return {"ms": round(statistics.median(times), 2), "min": round(min(times), 2), "max": round(max(times), 2)}


SHAPES = {"2 rows": (2, False), "1 row": (1, False), "cached 2 rows": (2, True), "cached 1 row": (1, True)}


def speed(model, execution=None, groups: int = 5) -> dict:
    return {
        name: ms_of_calls(model, DEEPCACHE if cached else {}, execution, rows, cached, groups)
        for name, (rows, cached) in SHAPES.items()
    }


# --- sections


def section_floor(model, _) -> dict:
    n = 8192 if CUDA else 256
    a, b = (torch.randn(n, n, device=DEVICE).to(HALF) for _ in range(2))
    times = []
    for _ in range(12):
        wait()
        t = time.perf_counter()
        for _ in range(5):
            a @ b
        wait()
        times.append((time.perf_counter() - t) / 5)
    rate = 2 * n**3 / statistics.median(times[2:]) / 1e12
    return {"TFLOP/s": round(rate), "floor 2 rows ms": round(1000 * TFLOP / rate, 1)}


def section_eager(model, _) -> dict:
    with bare(model):
        eager = speed(model, groups=3)
    return {"bare fp16": eager, "stock (autocast)": speed(model, groups=2)}


def section_cudagraph(model, state) -> dict:
    started = time.perf_counter()
    execution = state["cudagraph"]
    first = run_calls(model, {**FASTEST, **DEEPCACHE}, execution, [2, 2, 1, 1] + [1] * 7)
    ready = first.report.execution
    total = time.perf_counter() - started
    return {
        "ready s": round(ready.ready_seconds, 2),
        "first pass s": round(total, 2),
        "kinds": ready.prepared,
        "MiB": round(ready.nbytes / 2**20),
        **speed(model, execution),
    }


def section_exact(model, state) -> dict:
    """A replay against the same call run eagerly: bit for bit. Errors against fp32."""
    return {"cudagraph": compare(model, state["cudagraph"])}


def compare(model, execution) -> dict:
    found = {}
    outputs: dict[str, list] = {}

    def call_by(name: str, way=lambda model: nullcontext(), how=None) -> None:
        outputs[name] = []
        with way(model):
            run_calls(model, {}, how, [2, 2], watch=lambda k, call: outputs[name].append(call().clone()))

    call_by("graph", how=execution)
    call_by("the same, eager", same_call)
    execution.release()  # the weights lie as they did
    call_by("bare", bare)
    call_by("stock")
    found["bit-exact with the same, eager"] = all(map(torch.equal, outputs["graph"], outputs["the same, eager"]))
    reference = copy.deepcopy(model.unet).float()
    with torch.no_grad():
        exact = [reference(*(t.float() for t in model.inputs(2, k))) for k in range(2)]
    del reference
    for name, made in outputs.items():
        errors = [float((m.float() - e).norm() / e.norm()) for m, e in zip(made, exact, strict=True)]
        found[f"error of {name}"] = round(max(errors), 6)
    found["error ÷ stock's"] = round(found["error of graph"] / found["error of stock"], 3)
    return found


def section_changes(model, state) -> dict:
    """Weights changed in place, sizes, batches, techniques at random: each pass against eager calls."""
    execution, rng, began = Execution(state["new graphs"](), most=8), random.Random(0), time.perf_counter()
    techniques = [{}, DEEPCACHE, {"freeu": {"enabled": True}}, {"freeu": {"enabled": True}, **DEEPCACHE}]
    worst, memory, n, prepared, moved, exact = 0.0, [], 0, 0, 0, 0
    edge = model.size // 2
    while n < 60 and time.perf_counter() - began < 70:
        rows = rng.choice([2, 2, 1])
        settings = {**rng.choice(techniques), "cfg_cutoff": {"enabled": rows == 1, "stop": 0.0}}
        size = rng.choice([(edge, edge), (edge, edge // 2), (edge // 2, edge)])
        weight = model.unet.middle_block[0].in_layers[2].weight
        change = rng.random()
        if change < 0.3:
            weight.mul_(1.02 if rng.random() < 0.5 else 0.98)
        elif change < 0.36:
            model.unet.float().to(HALF)
            moved += 1
        ours, theirs = [], []
        run = run_calls(model, settings, execution, [rows] * 3, size, lambda k, call, o=ours: o.append(call().clone()))
        if run.report.execution.replays != 3:
            raise AssertionError(f"{run.report.execution} {run.report.notes}")
        prepared += run.report.execution.prepared
        with same_call(model):
            run_calls(model, settings, None, [rows] * 3, size, lambda k, call, o=theirs: o.append(call().clone()))
        exact += all(map(torch.equal, ours, theirs))
        for one, other in zip(ours, theirs, strict=True):
            worst = max(worst, float((one.float() - other.float()).norm() / other.float().norm()))
        memory.append(torch.cuda.memory_allocated() if CUDA else 0)
        n += 1
    result = {
        "alternations": n,
        "bit-exact with the same calls, eager": exact,
        "worst difference": round(worst, 6),
        "calls prepared": prepared,
        "weights moved": moved,
        "kept": len(execution),
        "MiB after 1/3, 2/3, all": [round(memory[i] / 2**20) for i in (n // 3, 2 * n // 3, n - 1)],
    }
    execution.release()
    return result


class Layer(nn.Module):
    """Does something with what goes through it."""

    def __init__(self, act):
        super().__init__()
        self.act = act

    def forward(self, x):
        self.act(x)
        return x


def section_faults(model, state) -> dict:
    """What can go wrong while a call is captured or replayed ends in the eager picture."""

    def item(x):
        x.sum().item()

    def synchronize(x):
        if CUDA and torch.cuda.is_current_stream_capturing():
            torch.cuda.current_stream().synchronize()  # makes the capture invalid

    result = {}
    expected = outputs_of(model, None)
    acts = {"reads a tensor": item, "synchronises in the capture": synchronize} if CUDA else {}
    for name, act in acts.items():
        layer = Layer(act)
        model.unet.out.insert(0, layer)
        try:
            result[name] = judge(model, Execution(state["new graphs"]()), expected)
        finally:
            del model.unet.out[0]
    graphs, calls = state["new graphs"](), []
    prepare = graphs.prepare
    graphs.prepare = lambda *args: calls.append(prepare(*args)) or calls[-1]
    after = Execution(graphs)
    result["a capture afterwards"] = judge(model, after, expected, fallbacks=0)
    for call in calls:
        call.replay = lambda: (_ for _ in ()).throw(RuntimeError("the driver gave up"))
    result["a fault in a replay"] = judge(model, after, expected)
    after.release()
    if CUDA:
        result["out of memory"] = out_of_memory(model, state, expected)
    torch.randn(3, device=DEVICE)  # the generator works
    return result


def outputs_of(model, execution, calls=(2, 2, 2)) -> list[torch.Tensor]:
    outputs = []
    outputs_of.run = run_calls(model, {}, execution, list(calls), watch=lambda k, call: outputs.append(call().clone()))
    return outputs


def judge(model, execution, expected, fallbacks: int = 3) -> str:
    outputs = outputs_of(model, execution)
    report = outputs_of.run.report
    pairs = [(o.float(), e.float()) for o, e in zip(outputs, expected, strict=True)]
    worst = max(float((o - e).norm() / e.norm()) for o, e in pairs)
    torch.randn(3, device=DEVICE)
    ok = worst < 0.01 and report.execution.fallbacks == fallbacks
    said = "; ".join(str(note) for note in report.notes)
    return f"{'ok' if ok else 'WRONG'}: difference {worst:.5f}, {report.execution.fallbacks} eager; {said}"


def out_of_memory(model, state, expected) -> str:
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_reserved()
    outputs_of(model, None)
    need = torch.cuda.max_memory_reserved() - before
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    hog = torch.empty(int(free - 1.3 * need - 200 * 2**20), dtype=torch.uint8, device=DEVICE)
    try:
        return f"{judge(model, Execution(state['new graphs']()), expected)} (left {1.3 * need / 2**20:.0f} MiB)"
    finally:
        del hog
        torch.cuda.empty_cache()


def euler(model, execution, settings: dict, steps: int = 30) -> float:
    """Seconds of a sampling loop with CFG 5, over the run's own calls."""
    plan = plan_for(settings, Loop.of_steps([1] * steps), Rows(1, 1), model.unet, cfg_scale=5.0)
    sigmas = torch.linspace(14.6, 0, steps + 1, device=DEVICE)
    _, _, text, vector = model.inputs(2)
    wait()
    started = time.perf_counter()
    with torch.no_grad(), model.casting(), Run(plan, execution=execution) as run:
        run.attach(model.unet)
        x = torch.randn(1, 4, model.size, model.size, device=DEVICE) * sigmas[0]
        for i in range(steps):
            rows = 1 if run.next_step().drops_uncond else 2
            run.begin_call(rows, 2, 1)
            t = torch.full((rows,), 999.0 - 30 * i, device=DEVICE, dtype=HALF)
            scaled = (x / (sigmas[i] ** 2 + 1).sqrt()).to(HALF).expand(rows, -1, -1, -1).contiguous()
            eps = model.unet(scaled, t, text[:rows], vector[:rows]).float()
            eps = eps if rows == 1 else eps[1:] + 5.0 * (eps[:1] - eps[1:])
            x = x + eps * (sigmas[i + 1] - sigmas[i])
        wait()
    if run.report.as_predicted is not True or (execution and run.report.execution.fallbacks):
        raise AssertionError(f"{[*map(str, happened(run.report))]} {run.report.notes}")
    return time.perf_counter() - started


def loops(model, execution) -> dict:
    result = {}
    for name, settings in (("30 steps", {}), ("cutoff 0.75", FASTEST), ("cutoff+deepcache 3", FASTEST_CACHED)):
        euler(model, execution, settings)
        result[name] = round(statistics.median(euler(model, execution, settings) for _ in range(3)), 3)
    return result


def section_loop(model, state) -> dict:
    stock = {"stock, 50 steps": round(statistics.median(euler(model, None, {}, 50) for _ in range(2)), 3)}
    return {**stock, "stock": loops(model, None), "cudagraph": loops(model, state["cudagraph"])}


def section_inductor(model, state) -> dict:
    execution = state["inductor"] = Execution(
        Inductor(state["cache"]), HostHooks(progress=lambda text: log(f"  {text}"))
    )
    result = {}
    for name, (rows, cached) in SHAPES.items():
        started = time.perf_counter()
        run = run_calls(model, DEEPCACHE if cached else {}, execution, [rows] * 2)
        if run.report.execution.fallbacks:
            raise AssertionError(f"{run.report.notes}")
        result[name] = {"ready s": round(time.perf_counter() - started, 1)}
        result[name] |= ms_of_calls(model, DEEPCACHE if cached else {}, execution, rows, cached)
        log(f"  {name}: {result[name]}")
    return {**result, **compare(model, execution)}


def section_profile(model, state) -> dict:
    """GPU time of a replay by kind of kernel."""
    found = {}
    for name in ("cudagraph", "inductor"):
        if name == "inductor" and name not in state:
            state[name] = Execution(Inductor(state["cache"]))
        if name in state:
            run_calls(model, {}, state[name], [2] * 2)  # prepares
            found[name] = kinds_of(lambda name=name: run_calls(model, {}, state[name], [2] * 4), 4)
            log("\n".join([name, *found[name][1]]))
    return {name: kinds for name, (kinds, _) in found.items()}


def section_inductor_loop(model, state) -> dict:
    return loops(model, state["inductor"])


SECTIONS = {  # name: (function, seconds that it may need)
    "floor": (section_floor, 3),
    "eager": (section_eager, 15),
    "cudagraph": (section_cudagraph, 12),
    "exact": (section_exact, 10),
    "loop": (section_loop, 25),
    "faults": (section_faults, 15),
    "inductor": (section_inductor, 45),
    "inductor loop": (section_inductor_loop, 12),
    "profile": (section_profile, 10),
    "changes": (section_changes, 15),
}


def log(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--limit", type=float, default=200)
    parser.add_argument("--only", default="")
    parser.add_argument("--cache", type=Path, help="folder of inductor's compiled code; a second run starts from it")
    parser.add_argument("--tiny", action="store_true", help="small widths on any device, to try the script")
    args = parser.parse_args()
    started = time.perf_counter()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True  # as the WebUI sets them
    model = Model(args.tiny)
    new_graphs = CudaGraph if CUDA else Tape
    state = {"cudagraph": Execution(new_graphs()), "new graphs": new_graphs, "cache": args.cache}
    results: dict[str, object] = {
        "device": torch.cuda.get_device_name() if CUDA else "cpu",
        "torch": torch.__version__,
        "model s": round(time.perf_counter() - started, 1),
    }
    log(json.dumps(results))
    wanted = args.only.split(",") if args.only else list(SECTIONS)
    for name in wanted:
        section, seconds = SECTIONS[name]
        left = args.limit - (time.perf_counter() - started)
        if left < seconds:
            results[name] = f"left out: {left:.0f} s were left"
        else:
            began = time.perf_counter()
            try:
                results[name] = section(model, state)
            except Exception as error:
                results[name] = f"FAILED: {type(error).__name__}: {error}"
                log(traceback.format_exc())
            if isinstance(results[name], dict):
                results[name]["section s"] = round(time.perf_counter() - began, 1)
        log(f"{name}: {json.dumps(results[name], ensure_ascii=False)}")
        if args.out:
            args.out.mkdir(parents=True, exist_ok=True)
            (args.out / "backends.json").write_text(json.dumps(results, indent=1, ensure_ascii=False))
    log("\n" + table(results))


def table(results: dict) -> str:
    """Median ms of a call by backend."""
    eager = results.get("eager") if isinstance(results.get("eager"), dict) else {}
    by_backend = {**eager, **{name: results.get(name) for name in ("cudagraph", "inductor")}}
    lines = ["| ms a call | " + " | ".join(SHAPES) + " |", "|---" * (len(SHAPES) + 1) + "|"]
    bare = eager.get("bare fp16", {})
    for backend, row in by_backend.items():
        if not isinstance(row, dict):
            continue
        cells = []
        for shape in SHAPES:
            ms, base = row.get(shape, {}).get("ms"), bare.get(shape, {}).get("ms")
            cells.append("–" if ms is None else f"{ms} ({ms / base:.2f})" if base else f"{ms}")
        lines.append(f"| {backend} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
