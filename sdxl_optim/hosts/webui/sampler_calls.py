"""The sampler's real loop, known before it runs: the sampler function itself is run once on a one-pixel latent with
a model that answers zeros, and its calls are written down.

No table of samplers can keep up with the number of calls that each scheduler, strength and setting makes; the function
itself always tells. The rehearsal takes no random numbers, touches no model and lasts some milliseconds.
"""

from __future__ import annotations

import functools
import inspect
import logging
import sys
from collections.abc import Callable
from types import FunctionType, SimpleNamespace

import torch

from sdxl_optim.hosts.webui.family import k_diffusion_sampling
from sdxl_optim.sampling.loop import Call, Loop

MAX_CALLS = 2000
# What samplers raise where they can't be used: UniPC with fewer steps than its order, DPM++ 3M SDE with one. They are
# caught around the sampler's own function alone: a slip of ours is an error.
FAILURES = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    NameError,
    RuntimeError,
    TypeError,
    ValueError,
)
log = logging.getLogger("sdxl_optim")


class CannotRehearse(Exception):
    """Only running this sampler can tell how many calls it makes."""


def rehearse(sampler, func: Callable) -> Loop:
    """The loop of `sampler`, whose `launch_sampling` was given `func`. `foreseeable` is false where it can't be
    known."""
    model = _Model(sampler.model_wrap_cfg)
    try:
        sample, kwargs, latent = _prepared(sampler, func)
    except CannotRehearse:
        return Loop(foreseeable=False)
    try:
        with torch.no_grad():
            sample(model, latent, extra_args={}, disable=True, callback=model.report_step, **kwargs)
    except (CannotRehearse, *FAILURES):
        log.debug("the calls of %s can't be foreseen", sampler.func, exc_info=True)
        return Loop(foreseeable=False, needs_uncond=model.need_last_noise_uncond)
    if sampler.func is k_diffusion_sampling().sample_dpm_adaptive:
        # It chooses its steps by its error, which zeros never have: every other model makes it take shorter ones.
        at_least = sum(event is not None for event in model.events)
        return Loop(foreseeable=False, needs_uncond=model.need_last_noise_uncond, at_least=at_least)
    return Loop(tuple(assign_steps(model.events)), needs_uncond=model.need_last_noise_uncond)


def _prepared(sampler, func: Callable) -> tuple[Callable, dict, torch.Tensor]:
    """The sampler's function without random numbers, its arguments, and a latent of one pixel. Raises CannotRehearse
    where the function is none of Python's, or the host hands it on in another way."""
    try:
        given = inspect.getclosurevars(func).nonlocals
        parameters = inspect.signature(sampler.func).parameters
    except (TypeError, ValueError):  # no function of Python's
        raise CannotRehearse from None
    if "extra_params_kwargs" not in given or not {"xi", "x"} & given.keys():
        raise CannotRehearse
    kwargs = dict(given["extra_params_kwargs"])
    x = given["xi"] if "xi" in given else given["x"]
    if "timesteps" not in kwargs:  # k-diffusion's samplers take sigmas from the CPU; the others live beside the model
        kwargs = {name: value.cpu() if torch.is_tensor(value) else value for name, value in kwargs.items()}
        x = torch.zeros(0, dtype=torch.float32)
    latent = torch.zeros(1, 4, 1, 1, device=x.device, dtype=x.dtype)
    if "noise_sampler" in parameters:
        kwargs["noise_sampler"] = lambda *sigmas: torch.zeros_like(latent)
    return without_random_numbers(sampler.func), kwargs, latent


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
        self.last_noise_uncond = zeros = torch.zeros_like(x)
        for tell in kwargs.get("model_options", {}).get("sampler_post_cfg_function", ()):  # Forge's way of CFG++
            self.need_last_noise_uncond = True
            tell({"denoised": zeros, "cond_denoised": zeros, "uncond_denoised": zeros, "input": x, "sigma": sigma})
        return zeros


class _Torch:
    """torch, for a sampler that must draw no random numbers: neither the request's nor, while another request is under
    way, those of that one."""

    randn_like = staticmethod(torch.zeros_like)

    def __getattr__(self, name: str):
        return getattr(torch, name)


def without_random_numbers(func: Callable) -> Callable:
    """A copy of a sampler's function that finds `_Torch` where it looks for torch. Nothing else is changed."""
    if isinstance(func, functools.partial):
        return functools.partial(without_random_numbers(func.func), *func.args, **func.keywords)
    stand_in, module = _Torch(), k_diffusion_sampling()
    sampling = SimpleNamespace(**{**vars(module), "torch": stand_in})
    package = SimpleNamespace(**{**vars(sys.modules[str(module.__package__)]), "sampling": sampling})
    return with_globals(func, torch=stand_in, k_diffusion=package, sampling=sampling)


def with_globals(func: Callable, **replaced) -> Callable:
    """A copy of the Python function `func`, without its decorators, whose module's globals are `replaced` where it has
    them. Raises CannotRehearse where it is no such function."""
    plain = inspect.unwrap(func)
    if not isinstance(plain, FunctionType):
        raise CannotRehearse
    known = plain.__globals__
    own = {**known, **{name: value for name, value in replaced.items() if name in known}}
    copy = FunctionType(plain.__code__, own, plain.__name__, plain.__defaults__, plain.__closure__)
    copy.__kwdefaults__ = plain.__kwdefaults__
    return copy


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
