"""Around the sampler's loop in the Forge family: what is known before it starts, the calls as they come to the UNet's
patcher, and the cutoff there."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import cast

import torch
from torch import nn

from modules import shared
from sdxl_optim.hosts.webui.facts import scheduled, timesteps, to_refiner, tokens, unet_facts
from sdxl_optim.hosts.webui.forge.rules import (
    goes_together,
    layout_of,
    no_uncond,
    reads_sigma,
    rows_held,
    why_no_cache,
    why_no_cut,
    without_skipped,
)
from sdxl_optim.hosts.webui.request import job_of
from sdxl_optim.hosts.webui.sampler_calls import rehearse
from sdxl_optim.planning.plan import Plan
from sdxl_optim.run import Run
from sdxl_optim.sampling.facts import Facts
from sdxl_optim.sampling.loop import Loop, Rows
from sdxl_optim.techniques.deepcache.calibration import find as find_calibration
from sdxl_optim.wording import Text

# --- before the loop


def gather_facts(p, sampler, steps: int, func, no_backend: Text | None) -> Facts:
    """no_backend: why the settings' backend can't run."""
    args, denoiser, model = sampler.sampler_extra_args, sampler.model_wrap_cfg, shared.sd_model
    cond, uncond = args["cond"], args["uncond"]
    scale = p.hr_cfg if p.is_hr_pass else args["cond_scale"]
    options = model.forge_objects.unet.model_options
    loop = rehearse(sampler, func)
    if loop.foreseeable:
        loop = _with_details(loop, p, sampler, steps, scale)
    unet = unet_facts(model.forge_objects.unet.model.diffusion_model, layout_of, p)
    calibration, reason = find_calibration(model.sd_checkpoint_info.filename)
    batch = len(cond.batch)
    edits = getattr(model, "cond_stage_key", None) == "edit" and denoiser.image_cfg_scale not in (None, 1.0)
    cannot = {
        "cfg_cutoff": why_no_cut(cond, loop, options, edits),
        "deepcache": why_no_cache(options),
        "backend": no_backend,
    }
    return Facts(
        loop=loop,
        rows=Rows(min(map(len, cond.batch)) * batch, batch, batch, _together(cond, uncond, 0)),
        cfg_scale=scale,
        unet=unet,
        cannot={technique: why for technique, why in cannot.items() if why},
        timesteps=timesteps(loop, denoiser),
        calibration=calibration,
        no_calibration=reason,
    )


def _with_details(loop: Loop, p, sampler, steps: int, scale: float) -> Loop:
    args, denoiser = sampler.sampler_extra_args, sampler.model_wrap_cfg
    options = shared.sd_model.forge_objects.unet.model_options
    total = sampler.config.total_steps(steps)
    calls = (
        replace(
            call,
            host_skips=args["uncond"] is None or no_uncond(denoiser, i, total, call.sigma, scale, options),
            same_length=_together(args["cond"], args["uncond"], i),
        )
        for i, call in enumerate(to_refiner(p, loop.calls, lambda i, sigma: i / total))
    )
    return replace(loop, calls=tuple(calls))


def _together(cond, uncond, call: int) -> bool:
    """Whether the host's `call`-th call sends cond and uncond rows through the UNet together."""
    if uncond is None:
        return True
    longest = max(tokens(scheduled(prompt.schedules, call)) for prompts in cond.batch for prompt in prompts)
    return goes_together(longest, tokens(scheduled(uncond[0], call)))


# --- in the loop


def stock_rows(params) -> int:
    denoiser, cond = params.denoiser, params.text_cond
    p = denoiser.p
    scale = p.hr_cfg if p.is_hr_pass else denoiser.sampler.sampler_extra_args["cond_scale"]
    skips = params.text_uncond is None or _skips(denoiser, params.sigma, scale, _options())
    cond_rows = (cond["crossattn"] if isinstance(cond, dict) else cond).shape[0]
    return cond_rows + (0 if skips else params.x.shape[0])


def _options() -> dict:
    return shared.sd_model.forge_objects.unet.model_options


def _skips(denoiser, sigma: torch.Tensor, scale: float, options: dict) -> bool:
    level = float(sigma[0]) if reads_sigma(denoiser) else 0.0
    return no_uncond(denoiser, denoiser.step, denoiser.total_steps, level, scale, options)


class ForgeRun(Run):
    """A run whose calls begin in a conditioning modifier of the UNet's patcher, Forge's own place for such."""

    def __init__(self, plan: Plan, name: str):
        super().__init__(plan, name, rows_held=rows_held, layout_of=layout_of)
        self._modifier: Callable | None = None
        self._due = False  # the denoiser has announced a call, which will pass through the modifier

    def follow(self, denoiser) -> None:
        """Attach to the model that will answer: the first, or the refiner after the switch. A pass made meanwhile, as
        by a script that generates inside a generation, leaves the model with a patcher of its own."""
        self._due = True
        model = shared.sd_model
        unet = model.forge_objects.unet.model.diffusion_model
        key = (unet, model.sd_checkpoint_info.filename)
        if self.attached_to != key:
            if job := job_of(denoiser.p):
                job.follow_model(denoiser.p)
            self.attach(unet, key)
        if self._modifier not in _options().get("conditioning_modifiers", ()):
            self._modifier = self._make_modifier(denoiser)
            self.undo.enter_context(modified(model.forge_objects, self._modifier))

    def attach(self, unet: nn.Module, key: Hashable = None) -> None:
        super().attach(unet, key)
        self._depth = len(getattr(unet, "input_blocks", ()))
        hide = unet.register_forward_pre_hook(self._hide_control, with_kwargs=True)
        self.undo.callback(hide.remove)

    def _make_modifier(self, denoiser) -> Callable:
        # A plain function: patchers are copied in depth, a bound method with all that belongs to it.
        def modifier(model, x, timestep, uncond, cond, cond_scale, options, seed):
            if modifier is self._modifier and self._due:
                self._due = False
                uncond, cond, cond_scale = self._begin(denoiser, x, timestep, uncond, cond, cond_scale, options)
            return model, x, timestep, uncond, cond, cond_scale, options, seed

        return modifier

    def _begin(self, denoiser, x, sigma, uncond, cond, scale, options) -> tuple:
        batch = x.shape[0]
        host_skips = uncond is None or _skips(denoiser, sigma, scale, options)
        cond_rows = len(cond) * batch
        stock_rows = cond_rows if host_skips else cond_rows + len(uncond) * batch
        cut = self.next_step().drops_uncond and not host_skips
        self.begin_call(cond_rows if cut else stock_rows, stock_rows, cond_rows)
        if cut:  # at a scale of 1 the host computes no uncond rows; a weight would then stand alone
            return None, [{**each, "strength": 1.0} for each in cond], 1.0
        return uncond, cond, scale

    def _hide_control(self, unet, args, kwargs):
        """Comes after the run's own hook, which made the call's value."""
        if self.call is None or not self.call.cached or kwargs.get("control") is None:
            return None
        return args, {
            **kwargs,
            "control": without_skipped(kwargs["control"], cast(range, self.call.skipped), self._depth),
        }

    def _detach(self) -> None:
        self._modifier = None
        super()._detach()


@contextmanager
def modified(objects, modifier: Callable) -> Iterator[None]:
    """While entered, the model's UNet patcher is a copy that has `modifier`."""
    before = objects.unet
    ours = before.clone()
    ours.add_conditioning_modifier(modifier)
    objects.unet = ours
    try:
        yield
    finally:
        if objects.unet is ours:
            objects.unet = before
