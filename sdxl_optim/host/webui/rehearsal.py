"""The sampler's real loop, known before it runs: the sampler function itself is run once on a one-pixel latent with
a model that answers zeros, and its calls are written down.

No table of samplers can keep up with the number of calls that each scheduler, strength and setting makes; the function
itself always tells. The rehearsal takes no random numbers, touches no model and lasts some milliseconds.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import k_diffusion.sampling
import torch

from sdxl_optim.schedule import Call, Loop

MAX_CALLS = 2000


class CannotRehearse(Exception):
    """Only running this sampler can tell how many calls it makes."""


def rehearse(sampler, func: Callable) -> Loop:
    """The loop of `sampler`, whose `launch_sampling` was given `func`. `foreseeable` is false where it can't be
    known."""
    if sampler.func is k_diffusion.sampling.sample_dpm_adaptive:  # it chooses its steps by what the model answers
        return Loop(foreseeable=False)
    model = _Model(sampler.model_wrap_cfg)
    try:
        _run(sampler, func, model)
    except (CannotRehearse, AttributeError, KeyError, RuntimeError, TypeError, ValueError):
        return Loop(foreseeable=False, needs_uncond=model.need_last_noise_uncond)
    return Loop(tuple(assign_steps(model.events)), needs_uncond=model.need_last_noise_uncond)


def _run(sampler, func: Callable, model: _Model) -> None:
    given = inspect.getclosurevars(func).nonlocals
    kwargs = dict(given["extra_params_kwargs"])
    x = given["xi"] if "xi" in given else given["x"]
    if (
        "timesteps" not in kwargs
    ):  # k-diffusion's samplers keep their sigmas on the CPU; the others live beside the model
        x = torch.zeros(0, dtype=torch.float32)
    latent = torch.zeros(1, 4, 1, 1, device=x.device, dtype=x.dtype)
    if "noise_sampler" in inspect.signature(sampler.func).parameters:
        kwargs["noise_sampler"] = lambda *sigmas: torch.zeros_like(latent)

    with torch.no_grad(), _no_random_numbers(latent):
        sampler.func(model, latent, extra_args={}, disable=True, callback=model.report_step, **kwargs)


class _Model:
    """Stands in for the CFGDenoiser and answers zeros.

    events: what happened, in order: the sigma of a call, or None where the sampler reported a step.
    """

    def __init__(self, denoiser):
        self.inner_model = denoiser.inner_model
        self.need_last_noise_uncond = False  # CFG++ samplers set it
        self.last_noise_uncond = None
        self.events: list[float | None] = []

    def report_step(self, state: dict) -> None:
        self.events.append(None)

    def __call__(self, x, sigma, **kwargs):
        if len(self.events) > MAX_CALLS:
            raise CannotRehearse
        self.events.append(float(sigma.max()))
        self.last_noise_uncond = torch.zeros_like(x)
        return torch.zeros_like(x)


class _Zeros:
    def __init__(self, like: torch.Tensor):
        self.like = like

    def next(self):
        return torch.zeros_like(self.like)


@contextmanager
def _no_random_numbers(latent: torch.Tensor) -> Iterator[None]:
    """The host gives samplers their noise through an object of its own; while entered, that answers zeros."""
    source = k_diffusion.sampling.torch
    if not hasattr(source, "rng"):
        raise CannotRehearse
    rng, source.rng = source.rng, _Zeros(latent)
    try:
        yield
    finally:
        source.rng = rng


def assign_steps(events: list[float | None]) -> list[Call]:
    """Give each call its step and its place in it.

    k-diffusion's samplers report a step after its first call, so the last call before a report opens that step and the
    earlier ones still belong to the step before. Samplers that report at the end of a step show it by the first report:
    more than one call precedes it. With a call for each report there is nothing to tell apart.
    """
    sigmas = [e for e in events if e is not None]
    reports = len(events) - len(sigmas)
    if reports == 0 or len(sigmas) <= reports:
        return [Call(i, 0, sigma) for i, sigma in enumerate(sigmas)]
    at_end = events.index(None) > 1

    groups: list[list[float]] = [[]]  # calls between reports
    for event in events:
        if event is None:
            groups.append([])
        else:
            groups[-1].append(event)
    tail = groups.pop()
    steps: list[list[float]] = []
    for group in groups:
        if at_end or not steps:
            steps.append(list(group))
        else:
            steps[-1].extend(group[:-1])
            steps.append(group[-1:])
    steps[-1].extend(tail)
    return [Call(i, place, sigma) for i, step in enumerate(steps) for place, sigma in enumerate(step)]
