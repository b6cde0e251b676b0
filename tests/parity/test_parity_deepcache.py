"""DeepCache against the `deepcache` package's helper, on one recorded sequence of inputs."""

from __future__ import annotations

from types import SimpleNamespace

import host_loop
import ldm_unet
import pytest
import torch

from sdxl_optim.run import Run
from sdxl_optim.sampling.loop import Loop

pytest.importorskip("diffusers")
DeepCacheSDHelper = pytest.importorskip("DeepCache").DeepCacheSDHelper

STEPS = 8


def recorded(config, size=(8, 8)) -> list[ldm_unet.Inputs]:
    """Inputs that change a little from step to step, as a sampler's do, at descending timesteps."""
    first = ldm_unet.random_inputs(config, size=size, timestep=999)
    sequence = []
    for i in range(STEPS):
        noise = torch.randn(first.x.shape, generator=torch.Generator().manual_seed(i))
        x = (1 - 0.05 * i) * first.x + 0.2 * noise
        timesteps = torch.full((len(x),), float(999 - 120 * i))
        sequence.append(ldm_unet.Inputs(x, timesteps, first.context, first.y, first.pooled, first.time_ids))
    return sequence


def helper_outputs(model, sequence, interval: int, branch: int) -> list[torch.Tensor]:
    timesteps = torch.stack([inputs.timesteps[0] for inputs in sequence])
    pipe = SimpleNamespace(unet=model, scheduler=SimpleNamespace(timesteps=timesteps))
    helper = DeepCacheSDHelper(pipe=pipe)
    helper.set_params(cache_interval=interval, cache_branch_id=branch)
    helper.enable()
    try:
        return [model(*inputs.diffusers_args, **inputs.diffusers_kwargs).sample for inputs in sequence]
    finally:
        helper.disable()


def our_outputs(unet, sequence, interval: int, branch: int) -> tuple[list[torch.Tensor], host_loop.Seen]:
    loop = Loop.of_steps([1] * len(sequence))
    settings = {"deepcache": {"enabled": True, "cache_interval": interval, "cache_branch_id": branch}}
    with host_loop.watched(unet) as seen, Run(host_loop.plan_for(settings, loop, unet=unet)) as run:
        run.attach(unet)
        for inputs in sequence:
            run.begin_call(2, 2, 1)
            unet(*inputs.args)
    return seen.outputs, seen


def compare(name: str, interval: int, branch: int, size=(8, 8)) -> None:
    unet = ldm_unet.tiny_unet(name)
    sequence = recorded(unet.config, size)
    theirs = helper_outputs(ldm_unet.to_diffusers(unet), sequence, interval, branch)
    ours, seen = our_outputs(unet, sequence, interval, branch)
    stock = [unet(*inputs.args) for inputs in sequence]
    full = range(0, STEPS, interval)
    assert (seen.full, seen.cached) == (len(full), STEPS - len(full))
    for i in range(STEPS):
        scale = theirs[i].norm()
        assert (ours[i] - theirs[i]).norm() < 1e-5 * scale
        assert torch.equal(ours[i], stock[i]) == (i in full)
    # a cached step differs from a full one by far more than the two implementations differ
    assert max(((s - t).norm() / t.norm()).item() for s, t in zip(stock, theirs, strict=True)) > 1e-3


@pytest.mark.parametrize("branch", [0, 1, 2])
@pytest.mark.parametrize("interval", [2, 3, 5])
def test_agrees_with_the_package(interval, branch):
    compare("sdxl", interval, branch)


@pytest.mark.parametrize("branch", range(3, 9))
def test_agrees_with_the_package_at_the_deeper_branches_of_sdxl(branch):
    compare("sdxl", 3, branch, (8, 16))


@pytest.mark.parametrize("branch", [0, 5, 11])
def test_agrees_with_the_package_on_sd15(branch):
    compare("sd15", 2, branch)


@pytest.mark.parametrize("branch", [0, 4, 9])
def test_agrees_with_the_package_on_the_refiner(branch):
    compare("refiner", 3, branch)
