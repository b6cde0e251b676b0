"""Around the sampler's loop: what is known before it starts, the run that it goes through, and the cutoff in its
callback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import torch

from modules import prompt_parser, sd_unet, shared
from modules.shared import opts
from sdxl_optim.calibration import find as find_calibration
from sdxl_optim.calibration import timestep_of
from sdxl_optim.errors import Unsupported
from sdxl_optim.host.webui import backend
from sdxl_optim.host.webui.job import Job, job_of
from sdxl_optim.host.webui.measure import measurement_of
from sdxl_optim.host.webui.rehearsal import rehearse
from sdxl_optim.host.webui.stages import DENOISE, ENCODE, UPSCALE
from sdxl_optim.layout import read_layout
from sdxl_optim.patches.attribute import replaced
from sdxl_optim.patches.freeu import freeu_stages
from sdxl_optim.plan import Facts, make_plan
from sdxl_optim.run import Run
from sdxl_optim.schedule import Call, Loop, Rows
from sdxl_optim.settings import Settings
from sdxl_optim.work import cached_share

RUN = "sdxl_optim_run"  # the attribute of the sampler under which its run is found
WATCH = "sdxl_optim_watch"  # … and under which the wait for its loop
_active: list[Run] = []  # innermost last; one, but for scripts that generate inside a generation


def pass_name(p) -> str:
    return "hires" if p.is_hr_pass else ("img2img" if hasattr(p, "init_images") else "base")


def watch_sampler(p, job: Job | None) -> None:
    """Have p.sampler's next loop run inside a Run (or, where the extension is off for `p`, undisturbed by those of
    others)."""
    if job is None and not _active:
        return
    sampler = p.sampler
    stale = vars(sampler).pop(WATCH, None)
    if stale is not None:  # announced before, but its loop never began
        stale.close()

    def make(original):
        def launch_sampling(steps, func):
            vars(sampler).pop(WATCH).close()  # once: each loop is announced anew
            with _others_suspended():
                if job is None:
                    return original(steps, func)
                with _running(p, sampler, job, steps, func):
                    return original(steps, func)

        return launch_sampling

    watch = ExitStack()
    watch.enter_context(replaced(sampler, "launch_sampling", make))
    setattr(sampler, WATCH, watch)


@contextmanager
def _others_suspended() -> Iterator[None]:
    others = list(_active)
    for run in others:
        run.suspend()
    try:
        yield
    finally:
        for run in others:
            run.resume()


@contextmanager
def _running(p, sampler, job: Job, steps: int, func) -> Iterator[None]:
    settings = job.settings.for_hires() if p.is_hr_pass else job.settings
    plan = make_plan(settings, gather_facts(p, sampler, settings, steps, func))
    run = Run(plan, pass_name(p), backend.execution_of(plan.backend))
    job.stages.ends(UPSCALE if p.is_hr_pass else ENCODE)
    job.report.add_pass(p.iteration, run.report)
    _active.append(run)
    setattr(sampler, RUN, run)
    try:
        with run:
            yield
        run.report.stopped = shared.state.interrupted or shared.state.skipped
    finally:
        delattr(sampler, RUN)
        _active.remove(run)
        job.stages.ends(DENOISE)


# --- before the loop


def gather_facts(p, sampler, settings: Settings, steps: int, func) -> Facts:
    args = sampler.sampler_extra_args
    denoiser = sampler.model_wrap_cfg
    rows = _rows(args["cond"], args["uncond"], _edits(denoiser))
    loop = rehearse(sampler, func)
    if loop.foreseeable:
        total = sampler.config.total_steps(steps)
        calls = _switch_to_refiner(p, denoiser, total, loop.calls)
        calls = (
            replace(
                call,
                host_skips=_host_skips(i, total, call.sigma, denoiser),
                same_length=_same_length(args["cond"], args["uncond"], i),
            )
            for i, call in enumerate(calls)
        )
        loop = replace(loop, calls=tuple(calls))
    depth, stages, no_unet, share = 0, 0, None, None
    try:
        layout = read_layout(shared.sd_model.model.diffusion_model)
        depth, stages = layout.depth, freeu_stages(layout)
        if settings.deepcache.cache_branch_id < depth:
            share = cached_share(layout, settings.deepcache.cache_branch_id, *_latent_size(p))
    except Unsupported as error:
        no_unet = error.reason
    if sd_unet.current_unet is not None:
        no_unet = f"the UNet is run by {sd_unet.current_unet_option.label}"
    calibration, reason = find_calibration(shared.sd_model.sd_checkpoint_info.filename)
    return Facts(
        loop,
        rows,
        args["cond_scale"],
        depth,
        stages,
        no_unet,
        _why_no_cut(args["cond"], loop),
        _timesteps(loop, denoiser),
        calibration,
        reason,
        share,
        backend.why_not(settings),
    )


def _latent_size(p) -> tuple[int, int]:
    height, width = (p.hr_upscale_to_y, p.hr_upscale_to_x) if p.is_hr_pass else (p.height, p.width)
    return height // 8, width // 8


def _timesteps(loop: Loop, denoiser) -> tuple[float, ...]:
    """Of each step's first call. Samplers from k-diffusion count in noise levels."""
    levels = [call.sigma for call in loop.calls if call.place == 0]
    counts_in_sigmas = getattr(denoiser.inner_model, "sigmas", None) is not None
    return tuple(map(timestep_of, levels)) if counts_in_sigmas else tuple(levels)


def _rows(cond, uncond, edits: bool) -> Rows:
    batch = len(cond.batch)
    cond_rows = sum(len(prompts) for prompts in cond.batch)
    same_length = _same_length(cond, uncond, 0)
    return Rows(cond_rows, batch * (2 if edits else 1), batch, same_length, bool(opts.batch_cond_uncond))


def _same_length(cond, uncond, call: int) -> bool:
    """Whether the host's `call`-th call has equally many tokens in its cond and uncond rows."""
    if opts.pad_cond_uncond or opts.pad_cond_uncond_v0:
        return True
    longest = max(_tokens(_scheduled(prompt.schedules, call)) for prompts in cond.batch for prompt in prompts)
    return longest == _tokens(uncond[0][0])  # the host gives all uncond rows the length of the first


def _scheduled(schedules, call: int):
    """The entry of a prompt's editing schedule that the host takes for its `call`-th call."""
    return next((entry for entry in schedules if call <= entry.end_at_step), schedules[0])


def _tokens(entry) -> int:
    return (entry.cond["crossattn"] if isinstance(entry.cond, dict) else entry.cond).shape[0]


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


def _switch_to_refiner(p, denoiser, total: int, calls: tuple[Call, ...]) -> tuple[Call, ...]:
    """Mark the calls that the refiner will answer, by the host's own rule: share of steps, or of noise levels."""
    info, at = p.refiner_checkpoint_info, p.refiner_switch_at
    if info is None or at is None or shared.sd_model.sd_checkpoint_info == info:
        return calls
    if getattr(p, "enable_hr", False) and opts.hires_fix_refiner_pass == (
        "first pass" if p.is_hr_pass else "second pass"
    ):
        return calls
    levels = getattr(denoiser.inner_model, "sigmas", None)
    levels = None if levels is None else levels.cpu()

    def done(i: int, sigma: float) -> float:
        if opts.refiner_switch_by_sample_steps:
            return i / total
        timestep = int(sigma) if levels is None else int(torch.argmin(torch.abs(levels - sigma)))
        return (999 - timestep) / 1000

    first = next((i for i, call in enumerate(calls) if done(i, call.sigma) >= at), len(calls))
    return tuple(replace(call, model=int(i >= first)) for i, call in enumerate(calls))


# --- in the loop


def on_cfg_denoiser(params) -> None:
    """The host's callback before each model evaluation."""
    denoiser = params.denoiser
    run: Run | None = getattr(getattr(denoiser, "sampler", None), RUN, None)
    if run is None:
        _count_stock(denoiser, params)
        if _active:  # somebody samples inside a generation of ours, out of our sight
            _active[-1].step = None
        return
    _follow_model(run, denoiser.p)

    rows, cond_rows = params.x.shape[0], params.text_cond.shape[0]
    host_skips = _host_skips_now(denoiser, params)
    stock_rows = rows - params.text_uncond.shape[0] if host_skips else rows
    cut = run.next_step().cut and not host_skips
    if cut:
        shortened = _without_uncond(params, cond_rows)
        for name, value in shortened.items():
            setattr(params, name, value)
    run.begin_call(cond_rows if cut else stock_rows, stock_rows, cond_rows)


def _count_stock(denoiser, params) -> None:
    measurement = measurement_of(denoiser.p) if getattr(denoiser, "p", None) is not None else None
    if measurement is not None:
        skipped = params.text_uncond.shape[0] if _host_skips_now(denoiser, params) else 0
        measurement.count(params.x.shape[0] - skipped)


def _follow_model(run: Run, p) -> None:
    """Attach to the model that will answer: the first, or the refiner after the switch (perhaps in the same UNet
    object)."""
    model = shared.sd_model
    key = (model.model.diffusion_model, model.sd_checkpoint_info.filename)
    if run.attached_to != key:
        if job := job_of(p):
            job.follow_model(p)
        run.attach(model.model.diffusion_model, key)


def _host_skips_now(denoiser, params) -> bool:
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
