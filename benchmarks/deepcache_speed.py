"""DeepCache here against the `deepcache` package on diffusers, in one process on one GPU, full-size SDXL, random
weights.

    python benchmarks/deepcache_speed.py --sgm GENERATIVE_MODELS [--json OUT] [--tiny]

GENERATIVE_MODELS is a checkout of the generative-models repository that the WebUI pins: its UNet class is the one
that the WebUI runs. Both sides run the same Euler loop over fp16 latents of a 1024×1024 picture with CFG (two rows
a call).
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import random
import statistics
import sys
import types
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from host_loop import facts_for

from sdxl_optim.planning.plan import make_plan
from sdxl_optim.run import Run
from sdxl_optim.sampling.loop import Loop, Rows
from sdxl_optim.settings import from_dict

STEPS, INTERVAL, BRANCH = 50, 3, 0


def sgm_unet(root: Path, tiny: bool):
    """The pinned UNet class, imported without the rest of its package, which needs much that is not used here."""
    if not hasattr(torch.backends.cuda, "sdp_kernel"):
        torch.backends.cuda.sdp_kernel = lambda **kwargs: contextlib.nullcontext()
    if importlib.util.find_spec("omegaconf") is None:  # the class asks only whether an argument is its list type
        sys.modules["omegaconf"] = sys.modules["omegaconf.listconfig"] = types.SimpleNamespace(ListConfig=tuple)
    for name in ("sgm", "sgm.modules", "sgm.modules.diffusionmodules"):
        package = types.ModuleType(name)
        package.__path__ = [str(root / name.replace(".", "/"))]
        sys.modules[name] = package
    from sgm.modules.diffusionmodules.openaimodel import UNetModel

    width, context, adm = (32, 64, 64) if tiny else (320, 2048, 2816)
    model = UNetModel(
        adm_in_channels=adm, num_classes="sequential", use_checkpoint=False, in_channels=4, out_channels=4,
        model_channels=width, attention_resolutions=[4, 2], num_res_blocks=2, channel_mult=[1, 2, 4],
        num_head_channels=width // 5 if not tiny else 32, use_spatial_transformer=True, use_linear_in_transformer=True,
        transformer_depth=[1, 2, 10] if not tiny else 1, context_dim=context, spatial_transformer_attn_type="softmax",
    )  # fmt: skip
    for module in model.modules():  # bare half precision, as diffusers runs: norms without a detour over fp32
        if isinstance(module, torch.nn.GroupNorm):
            module.__class__ = torch.nn.GroupNorm
    model.time_embed.register_forward_pre_hook(lambda m, args: (args[0].to(m[0].weight.dtype),))
    return model


def diffusers_unet(tiny: bool):
    from diffusers import UNet2DConditionModel

    widths = (32, 64, 128) if tiny else (320, 640, 1280)
    return UNet2DConditionModel(
        sample_size=128, in_channels=4, out_channels=4, block_out_channels=widths, layers_per_block=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 10) if not tiny else 1, attention_head_dim=(5, 10, 20) if not tiny else 1,
        cross_attention_dim=64 if tiny else 2048, use_linear_projection=True, addition_embed_type="text_time",
        addition_time_embed_dim=8 if tiny else 256, projection_class_embeddings_input_dim=64 if tiny else 2816,
    )  # fmt: skip


@torch.no_grad()
def fill(model, device, dtype):
    """Random weights with small residual branches, so that fp16 never overflows; nothing stays at zero."""
    torch.manual_seed(0)
    model.to(device=device, dtype=dtype).eval()
    for p in model.parameters():
        if p.dim() > 1:
            p.normal_(0, 0.3 / p[0].numel() ** 0.5)
    return model


def timed(f, device):
    if device == "cuda":
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        f()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end)
    import time

    t = time.perf_counter()
    f()
    return 1000 * (time.perf_counter() - t)


@torch.no_grad()
def euler(call, timesteps, sigmas, x, before=lambda i: None):
    """One CFG picture; call(x of two rows, timestep) is the UNet."""
    for i in range(len(sigmas) - 1):
        before(i)
        eps = call(torch.cat([x, x]) / (sigmas[i] ** 2 + 1) ** 0.5, timesteps[i])
        cond, uncond = eps.chunk(2)
        x = x + (uncond + 5.0 * (cond - uncond)) * (sigmas[i + 1] - sigmas[i])
    return x


def leftovers(model) -> int:
    """Hooks and attributes that somebody put on the model's modules."""
    modules = list(model.modules())
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + ("forward" in vars(m)) for m in modules)


@torch.no_grad()
def hundred_random_runs(unet, latent, text, vector, dtype) -> dict:
    """100 short runs with random settings; what they leave on the model and in the card's memory."""
    rng, levels, before = random.Random(0), [], leftovers(unet)
    for _ in range(100):
        n = rng.randint(3, 8)
        deepcache = {
            "enabled": rng.random() < 0.8,
            "cache_interval": rng.randint(1, 4),
            "cache_branch_id": rng.randint(0, 8),
        }
        asked = {
            "freeu": {"enabled": rng.random() < 0.5, "version": rng.choice([1, 2])},
            "cfg_cutoff": {"enabled": rng.random() < 0.5, "stop": rng.random()},
            "deepcache": deepcache,
        }
        plan = make_plan(from_dict(asked), facts_for(Loop.of_steps([1] * n), Rows(1, 1), 5.0, 9))
        with Run(plan) as run:
            run.attach(unet)
            for i in range(n):
                rows = 1 if run.next_step().drops_uncond else 2
                run.begin_call(rows, 2, 1)
                t = torch.full((rows,), 900 - i, device=latent.device, dtype=dtype)
                unet(latent.expand(rows, -1, -1, -1), timesteps=t, context=text[:rows], y=vector[:rows])
        if run.report.as_predicted is not True:
            raise AssertionError(f"{asked}: {run.report.counts} where {plan.prediction} was foreseen")
        levels.append(torch.cuda.memory_allocated() if latent.is_cuda else 0)
    return {
        "leftovers": leftovers(unet) - before,
        "bytes_after_1st": levels[0],
        "bytes_after_100th": levels[-1],
        "most": max(levels),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sgm", type=Path, required=True)
    parser.add_argument("--json", type=Path)
    parser.add_argument(
        "--tiny", action="store_true", help="small widths on whatever device there is, to try the script"
    )
    parser.add_argument("--runs", type=int, default=7)
    args = parser.parse_args()
    from DeepCache import DeepCacheSDHelper
    from diffusers import EulerDiscreteScheduler

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.float16 if device == "cuda" else torch.bfloat16
    scheduler = EulerDiscreteScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    scheduler.set_timesteps(STEPS)
    timesteps, sigmas = scheduler.timesteps.to(device), [float(s) for s in scheduler.sigmas]
    size, context, adm = (16, 64, 64) if args.tiny else (128, 2048, 2816)
    latent = torch.randn(1, 4, size, size, device=device, dtype=dtype) * sigmas[0]
    text = torch.randn(2, 77, context, device=device, dtype=dtype)
    vector = torch.randn(2, adm, device=device, dtype=dtype)

    ours = fill(sgm_unet(args.sgm, args.tiny), device, dtype)
    theirs = fill(diffusers_unet(args.tiny), device, dtype)
    added = {
        "text_embeds": vector[:, : adm - 6 * (8 if args.tiny else 256)],
        "time_ids": torch.ones(2, 6, device=device),
    }

    def call_ours(x, t):
        return ours(x, timesteps=t.expand(2).to(dtype), context=text, y=vector)

    def call_theirs(x, t):
        return theirs(x, t, encoder_hidden_states=text, added_cond_kwargs=added, return_dict=False)[0]

    settings = from_dict({"deepcache": {"enabled": True, "cache_interval": INTERVAL, "cache_branch_id": BRANCH}})
    plan = make_plan(settings, facts_for(Loop.of_steps([1] * STEPS), Rows(1, 1), 5.0, 9))
    counts = []

    def run_ours():
        with Run(plan) as run:
            run.attach(ours)
            euler(call_ours, timesteps, sigmas, latent, before=lambda i: run.begin_call(2, 2, 1))
        counts.append(run.report.counts)

    pipe = types.SimpleNamespace(unet=theirs, scheduler=types.SimpleNamespace(timesteps=timesteps))
    helper = DeepCacheSDHelper(pipe=pipe)
    helper.set_params(cache_interval=INTERVAL, cache_branch_id=BRANCH)

    def run_theirs():
        helper.enable()
        try:
            euler(call_theirs, timesteps, sigmas, latent)
        finally:
            helper.disable()

    def cached_step_ours():
        with Run(plan) as run, torch.no_grad():
            run.attach(ours)
            x = torch.cat([latent, latent])
            run.begin_call(2, 2, 1)
            call_ours(x, timesteps[0])
            times = []
            for _ in range(2):
                run.begin_call(2, 2, 1)
                times.append(timed(lambda: call_ours(x, timesteps[1]), device))
        return times[-1]

    def cached_step_theirs():
        helper.enable()
        try:
            with torch.no_grad():
                x = torch.cat([latent, latent])
                call_theirs(x, timesteps[0])
                return [timed(partial(call_theirs, x, t), device) for t in timesteps[1:3]][-1]
        finally:
            helper.disable()

    measured: dict[str, list[float]] = {}
    cases = {
        "loop, stock, sgm": lambda: timed(lambda: euler(call_ours, timesteps, sigmas, latent), device),
        "loop, stock, diffusers": lambda: timed(lambda: euler(call_theirs, timesteps, sigmas, latent), device),
        "loop, ours": lambda: timed(run_ours, device),
        "loop, deepcache package": lambda: timed(run_theirs, device),
        "cached step, ours": cached_step_ours,
        "cached step, deepcache package": cached_step_theirs,
    }
    for turn in range(args.runs + 1):  # interleaved, the first turn is the warm-up
        for name, f in cases.items():
            ms = f()
            if turn:
                measured.setdefault(name, []).append(ms)
    result = {
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "torch": torch.__version__, "steps": STEPS, "interval": INTERVAL, "branch": BRANCH, "runs": args.runs,
        "counts": [counts[-1].full, counts[-1].cached],
        "median_ms": {k: round(statistics.median(v), 3) for k, v in measured.items()},
        "min_max_ms": {k: [round(min(v), 3), round(max(v), 3)] for k, v in measured.items()},
    }  # fmt: skip
    m = result["median_ms"]
    result["ratio_loop"] = round(m["loop, ours"] / m["loop, deepcache package"], 3)
    result["ratio_cached_step"] = round(m["cached step, ours"] / m["cached step, deepcache package"], 3)
    if device == "cuda" or args.tiny:
        result["hundred_random_runs"] = hundred_random_runs(ours, latent, text, vector, dtype)
    text_out = json.dumps(result, indent=1)
    if args.json:
        args.json.write_text(text_out)
    sys.stdout.write(text_out + "\n")


if __name__ == "__main__":
    main()
