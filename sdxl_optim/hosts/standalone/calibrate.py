"""Measure a model's calibration for adaptive DeepCache (see `sdxl_optim.techniques.deepcache.calibration`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

from sdxl_optim.errors import Failed
from sdxl_optim.hosts.standalone.deepcache import ScheduledDeepCache
from sdxl_optim.hosts.standalone.finite import WEIGHTS
from sdxl_optim.hosts.standalone.refusals import refusals_of
from sdxl_optim.settings import DeepCache
from sdxl_optim.techniques.deepcache.calibration import Calibration


@torch.no_grad()
def calibrate(
    pipe: StableDiffusionXLPipeline,
    name: str,
    prompts: Sequence[str],
    levels: int = 20,
    branch: int = 0,
    cfg: float = 5.0,
    on_call: Callable[[], object] = lambda: None,
) -> Calibration:
    """Draw `prompts` in `levels` Euler steps, then predict at every step with the features of every earlier one.

    The errors are relative, ||cached - full|| / ||full|| of the guided prediction, and averaged over the prompts: that
    takes levels full calls twice and levels * (levels - 1) / 2 cached ones a prompt, each with cond and uncond rows.

    Raises Refused for what the pipeline raises before its first call is done, and Failed where an error is no number.
    """
    done = 0

    def count() -> None:
        nonlocal done
        done += 1
        on_call()

    scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    deepcache = ScheduledDeepCache(pipe, DeepCache(enabled=True, cache_branch_id=branch))
    deepcache.enable()
    try:
        with refusals_of(type(pipe).__name__, lambda: done > 0):
            errors = [_errors(pipe, deepcache, scheduler, p, k, levels, cfg, count) for k, p in enumerate(prompts)]
    finally:
        deepcache.disable()
    scheduler.set_timesteps(levels)
    mean = torch.stack(errors).mean(0)
    if not bool(torch.isfinite(mean).all()):
        raise Failed(f"the UNet gave NaN or infinity, so there is nothing to calibrate by; {WEIGHTS}")
    return Calibration(name, branch, tuple(map(float, scheduler.timesteps)), tuple(map(tuple, mean.tolist())))


def _errors(pipe, deepcache, scheduler, prompt: str, seed: int, levels: int, cfg: float, on_call) -> torch.Tensor:
    """[levels, levels], 0 on and below the diagonal."""
    predict = _predictor(pipe, deepcache, prompt, cfg, on_call)
    scheduler.set_timesteps(levels, device=pipe.device)
    size = pipe.unet.config.sample_size
    noise = torch.randn(1, 4, size, size, generator=torch.Generator("cpu").manual_seed(seed))
    x = noise.to(pipe.device, pipe.unet.dtype) * scheduler.init_noise_sigma
    inputs, full = [], []
    for t in scheduler.timesteps:
        inputs.append(scheduler.scale_model_input(x, t))
        full.append(predict(inputs[-1], t, cached=False))
        x = scheduler.step(full[-1], t, x, return_dict=False)[0]
    errors = torch.zeros(levels, levels)
    for i, kept in enumerate(scheduler.timesteps):
        predict(inputs[i], kept, cached=False)
        for j in range(i + 1, levels):
            cached = predict(inputs[j], scheduler.timesteps[j], cached=True)
            errors[i, j] = ((cached - full[j]).float().norm() / full[j].float().norm()).item()
    return errors


def _predictor(pipe, deepcache: ScheduledDeepCache, prompt: str, cfg: float, on_call):
    """A function (x [1, 4, H, W], timestep, cached) -> the guided prediction."""
    embeds, no_embeds, pooled, no_pooled = pipe.encode_prompt(
        prompt, device=pipe.device, num_images_per_prompt=1, do_classifier_free_guidance=True
    )
    pixels = pipe.unet.config.sample_size * pipe.vae_scale_factor
    numbers = torch.tensor([[pixels, pixels, 0, 0, pixels, pixels]] * 2, dtype=embeds.dtype, device=pipe.device)
    context = torch.cat([no_embeds, embeds])
    added = {"text_embeds": torch.cat([no_pooled, pooled]), "time_ids": numbers}

    def predict(x: torch.Tensor, timestep, cached: bool) -> torch.Tensor:
        rows = torch.cat([x, x])
        deepcache.announce(0, cached, 2, 1, (*rows.shape[2:], rows.dtype, rows.device))
        out = pipe.unet(rows, timestep, context, added_cond_kwargs=added, return_dict=False)[0]
        uncond, cond = out.chunk(2)
        on_call()
        return uncond + cfg * (cond - uncond)

    return predict
