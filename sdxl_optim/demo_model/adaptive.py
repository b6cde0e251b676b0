"""Judge where DeepCache's full steps lie: `python -m sdxl_optim.demo_model.adaptive [--prompts N] [--out FILE]`.

Held prompts at CFG 5 on the demo model, branch 0: SSIM to the uncached picture for uniform, nonuniform and adaptive
positions at equal numbers of full steps. One CSV row a picture, appended as it is made; the means are printed.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections import defaultdict
from pathlib import Path
from statistics import fmean

import torch

from sdxl_optim.calibration import ENDING, full_steps_adaptive, load
from sdxl_optim.host.diffusers.deepcache import ScheduledDeepCache
from sdxl_optim.host.diffusers.models import use_sampler
from sdxl_optim.schedule import full_steps_nonuniform, full_steps_uniform
from sdxl_optim.settings import DeepCache

from . import captions, evaluate, export

SAMPLERS, STEPS, INTERVALS = ("euler", "dpm++-2m"), (20, 30, 50), (2, 3, 5)
SETTINGS = DeepCache(enabled=True)


def positions(calibration, timesteps: list[float], interval: int) -> dict[str, frozenset[int]]:
    n = len(timesteps)
    uniform = full_steps_uniform(n, interval)
    return {
        "uniform": uniform,
        "nonuniform": full_steps_nonuniform(n, interval, SETTINGS.center, SETTINGS.power),
        "adaptive": full_steps_adaptive(calibration, timesteps, len(uniform)),
    }


@torch.no_grad()
def pictures(pipe, prompts: list[str], seeds: range, steps: int, full: frozenset[int]) -> torch.Tensor:
    """[N, 3, 256, 256], 0 to 1, with the UNet run in full at the steps `full` alone."""
    deepcache = ScheduledDeepCache(pipe, SETTINGS)
    deepcache.enable()
    step = iter(range(steps))

    def before(unet, args):
        x = args[0]
        deepcache.begin(0, next(step) not in full, len(x), len(prompts), (*x.shape[2:], x.dtype, x.device))

    handle = pipe.unet.register_forward_pre_hook(before)
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    options = {"num_inference_steps": steps, "guidance_scale": 5.0, "generator": generators, "output_type": "latent"}
    try:
        latents = pipe(prompts, **options).images
    finally:
        handle.remove()
        deepcache.disable()
    return evaluate.decoded(pipe.vae, latents)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m sdxl_optim.demo_model.adaptive", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--steps", type=int, nargs="+", default=STEPS)
    parser.add_argument("--out", type=Path, default=Path("adaptive.csv"))
    options = parser.parse_args(arguments)
    calibration, pipe = load(export.WEIGHTS / ENDING), evaluate.pipeline(export.WEIGHTS, "cpu")
    means: dict[tuple, list[float]] = defaultdict(list)
    for start in range(0, options.prompts, 8):
        prompts = captions.held_prompts()[start : min(start + 8, options.prompts)]
        seeds = range(start, start + len(prompts))
        for steps in options.steps:
            for sampler in SAMPLERS:
                use_sampler(pipe, sampler)
                pipe.scheduler.set_timesteps(steps)
                timesteps = [float(t) for t in pipe.scheduler.timesteps]
                stock = pictures(pipe, prompts, seeds, steps, frozenset(range(steps)))
                for interval in INTERVALS:
                    for mode, full in positions(calibration, timesteps, interval).items():
                        found = evaluate.ssim(pictures(pipe, prompts, seeds, steps, full), stock).tolist()
                        means[sampler, steps, interval, mode] += found
                        with options.out.open("a", newline="", encoding="utf-8") as file:
                            rows = [(sampler, steps, interval, mode, len(full), s) for s in seeds]
                            csv.writer(file).writerows((*row, f"{x:.5f}") for row, x in zip(rows, found, strict=True))
    for key, found in means.items():
        sys.stdout.write("{} {} {} {}: ".format(*key) + f"{fmean(found):.4f}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
