"""Around the sampler's loop in AUTOMATIC1111's WebUI: what is known before it starts, the cutoff in its callback."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from modules import prompt_parser, sd_unet, shared
from modules.shared import opts
from sdxl_optim.hosts.webui.facts import scheduled, timesteps, to_refiner, tokens, unet_facts
from sdxl_optim.hosts.webui.request import job_of
from sdxl_optim.hosts.webui.sampler_calls import rehearse
from sdxl_optim.run import Run
from sdxl_optim.sampling.facts import Facts
from sdxl_optim.sampling.loop import Loop, Rows
from sdxl_optim.techniques.deepcache.calibration import find as find_calibration
from sdxl_optim.unet.layout import read_layout
from sdxl_optim.wording import Text, message

# --- before the loop


def gather_facts(p, sampler, steps: int, func, no_backend: Text | None) -> Facts:
    """no_backend: why the settings' backend can't run."""
    args = sampler.sampler_extra_args
    denoiser = sampler.model_wrap_cfg
    rows = _rows(args["cond"], args["uncond"], _edits(denoiser))
    loop = rehearse(sampler, func)
    if loop.foreseeable:
        total = sampler.config.total_steps(steps)
        calls = to_refiner(p, loop.calls, _progress(denoiser, total))
        known = (
            replace(
                call,
                host_skips=_host_skips(i, total, call.sigma, denoiser),
                same_length=_same_length(args["cond"], args["uncond"], i),
            )
            for i, call in enumerate(calls)
        )
        loop = replace(loop, calls=tuple(known))
    unet = unet_facts(shared.sd_model.model.diffusion_model, read_layout, p)
    if sd_unet.current_unet is not None:
        unet = replace(unet, why_not=message("the UNet is run by {name}", name=sd_unet.current_unet_option.label))
    cannot = {"cfg_cutoff": _why_no_cut(args["cond"], loop), "backend": no_backend}
    calibration, reason = find_calibration(shared.sd_model.sd_checkpoint_info.filename)
    return Facts(
        loop=loop,
        rows=rows,
        cfg_scale=args["cond_scale"],
        unet=unet,
        cannot={technique: why for technique, why in cannot.items() if why},
        timesteps=timesteps(loop, denoiser),
        calibration=calibration,
        no_calibration=reason,
    )


def _rows(cond, uncond, edits: bool) -> Rows:
    batch = len(cond.batch)
    cond_rows = sum(len(prompts) for prompts in cond.batch)
    same_length = _same_length(cond, uncond, 0)
    return Rows(cond_rows, batch * (2 if edits else 1), batch, same_length, bool(opts.batch_cond_uncond))


def _same_length(cond, uncond, call: int) -> bool:
    """Whether the host's `call`-th call has equally many tokens in its cond and uncond rows."""
    if opts.pad_cond_uncond or opts.pad_cond_uncond_v0:
        return True
    longest = max(tokens(scheduled(prompt.schedules, call)) for prompts in cond.batch for prompt in prompts)
    return longest == tokens(uncond[0][0])  # the host gives all uncond rows the length of the first


def _edits(denoiser) -> bool:
    """Whether an instruct-pix2pix model is at work, which has three kinds of rows."""
    return shared.sd_model.cond_stage_key == "edit" and denoiser.image_cfg_scale not in (None, 1.0)


def _why_no_cut(cond, loop: Loop) -> str | None:
    if shared.sd_model.cond_stage_key == "edit":
        return "instruct-pix2pix models need the unconditional rows"
    if any(len(prompts) > 1 for prompts in cond.batch):
        return "prompts joined by AND need the unconditional rows"
    if loop.needs_uncond:
        return "this sampler (CFG++) works with the unconditional prediction"
    return None


def _host_skips(call: int, total: int, sigma: float, denoiser) -> bool:
    """The host's own two ways to skip uncond (Skip Early CFG, NGMS) for the `call`-th of `total` calls."""
    if opts.skip_early_cond != 0.0 and call / total <= opts.skip_early_cond:
        return True
    least = denoiser.sampler.s_min_uncond or 0
    return bool((call % 2 or opts.s_min_uncond_all) and least > 0 and sigma < least and not _edits(denoiser))


def _progress(denoiser, total: int) -> Callable[[int, float], float]:
    """How far the host counts itself to be: by share of steps, or of noise levels."""
    levels = getattr(denoiser.inner_model, "sigmas", None)
    levels = None if levels is None else levels.cpu()

    def done(i: int, sigma: float) -> float:
        if opts.refiner_switch_by_sample_steps:
            return i / total
        timestep = int(sigma) if levels is None else int(torch.argmin(torch.abs(levels - sigma)))
        return (999 - timestep) / 1000

    return done


# --- in the loop


def call_begins(run: Run, params) -> None:
    """The host's callback before a model evaluation, which is a call of `run`."""
    _follow_model(run, params.denoiser.p)
    rows, cond_rows = params.x.shape[0], params.text_cond.shape[0]
    host_skips = _host_skips_now(params)
    stock_rows = rows - params.text_uncond.shape[0] if host_skips else rows
    cut = run.next_step().drops_uncond and not host_skips
    if cut:
        shortened = _without_uncond(params, cond_rows)
        for name, value in shortened.items():
            setattr(params, name, value)
    run.begin_call(cond_rows if cut else stock_rows, stock_rows, cond_rows)


def stock_rows(params) -> int:
    skipped = params.text_uncond.shape[0] if _host_skips_now(params) else 0
    return params.x.shape[0] - skipped


def _follow_model(run: Run, p) -> None:
    """Attach to the model that will answer: the first, or the refiner after the switch (perhaps in the same UNet
    object)."""
    model = shared.sd_model
    key = (model.model.diffusion_model, model.sd_checkpoint_info.filename)
    if run.attached_to != key:
        if job := job_of(p):
            job.follow_model(p)
        run.attach(model.model.diffusion_model, key)


def _host_skips_now(params) -> bool:
    denoiser = params.denoiser
    # Reading sigma waits for the GPU; the host does the same where NGMS is in use, and only there is it read.
    sigma = float(params.sigma[0]) if (denoiser.sampler.s_min_uncond or 0) > 0 else 0.0
    return _host_skips(denoiser.step, denoiser.total_steps, sigma, denoiser)


def _without_uncond(params, cond_rows: int) -> dict:
    """The call's tensors with their cond rows alone; the host then returns the cond prediction."""
    text_cond = params.text_cond
    if isinstance(text_cond, dict):
        none = prompt_parser.DictWithShape({key: value[:0] for key, value in text_cond.items()})
    else:
        none = text_cond[:0]
    return {
        "x": params.x[:cond_rows],
        "sigma": params.sigma[:cond_rows],
        "image_cond": params.image_cond[:cond_rows],
        "text_uncond": none,
    }
