"""A request and its settings → pictures and a report, over diffusers' SDXL pipelines."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace

import torch
from diffusers import AutoencoderTiny, StableDiffusionXLImg2ImgPipeline, StableDiffusionXLPipeline
from PIL import Image

from sdxl_optim.bench.cases import Prompt
from sdxl_optim.bench.measure import Stopwatch
from sdxl_optim.errors import SettingsError
from sdxl_optim.hosts.standalone.backend import switches_as_planned, why_not
from sdxl_optim.hosts.standalone.memory import memory_as_planned
from sdxl_optim.hosts.standalone.prompts import notes_of_dropped
from sdxl_optim.hosts.standalone.refusals import set_timesteps
from sdxl_optim.hosts.standalone.request_facts import request_facts
from sdxl_optim.hosts.standalone.run import STEP_TENSORS, DiffusersRun
from sdxl_optim.hosts.standalone.vae import latents_as_sdxls, vae_as_planned
from sdxl_optim.planning.plan import Plan, RequestPlan, make_plan, plan_request
from sdxl_optim.report import JobReport
from sdxl_optim.sampling.facts import Facts, UNetFacts
from sdxl_optim.sampling.loop import Call, Loop, Rows
from sdxl_optim.sampling.note import Note
from sdxl_optim.settings import Memory, Settings
from sdxl_optim.techniques.deepcache.calibration import Calibration
from sdxl_optim.wording import Text

DEEPCACHE_LAYERS = 3  # the deepcache package numbers this many branches to a down block


@dataclass(frozen=True)
class Request:
    """What to generate. Sizes in pixels; the picture k of a batch has the seed `seed` + k.

    With a refiner, `refiner_strength` None is the ensemble of experts: the base does the fraction `switch_at`
    of the noise, the refiner the rest. A number is image-to-image: the refiner redoes that fraction of its
    own `refiner_steps`.
    """

    prompt: str
    negative: str | None = None
    steps: int = 50
    cfg: float = 5.0
    seed: int = 0
    width: int | None = None
    height: int | None = None
    batch: int = 1
    switch_at: float = 0.8
    refiner_strength: float | None = None
    refiner_steps: int | None = None


@dataclass
class Models:
    """The pipelines, and what of the request could not be loaded. prompts: what they draw, if not everything.
    calibration: the base's, or why there is none, as `calibration.find` says. placed: the settings that the weights lie
    by already, from one request to the next.
    """

    base: StableDiffusionXLPipeline
    refiner: StableDiffusionXLImg2ImgPipeline | None = None
    tiny_vae: AutoencoderTiny | None = None
    notes: tuple[Note, ...] = ()
    prompts: tuple[Prompt, ...] = ()
    calibration: tuple[Calibration | None, Text | None] = (None, "this model has no calibration")
    placed: Memory = Memory()


@dataclass
class Result:
    """images: one a picture of the batch. seconds: by stage."""

    images: list[Image.Image]
    report: JobReport
    seconds: dict[str, float] = field(default_factory=dict)


def generate(
    models: Models, request: Request, settings: Settings, on_call: Callable[[], object] = lambda: None
) -> Result:
    """Make the request's pictures. Raises SettingsError for what these models can't do."""
    job, watch = JobReport(notes=list(models.notes)), Stopwatch(models.base._execution_device)
    base, refiner = models.base, models.refiner
    runs = [DiffusersRun(plan, name, watch, on_call) for name, plan in make_plans(models, request, settings).items()]
    for run in runs:
        job.add_pass(0, run.report)
    note_what_is_dropped(models, request, job)
    generators = [torch.Generator("cpu").manual_seed(request.seed + k) for k in range(request.batch)]
    size = {"width": request.width, "height": request.height}

    def sample(run: DiffusersRun, pipe, steps: int, **more):
        with run.attached(pipe):
            images = pipe(
                prompt=request.prompt,
                negative_prompt=request.negative,
                num_images_per_prompt=request.batch,
                num_inference_steps=steps,
                guidance_scale=run.guidance_scale(request.cfg),
                generator=generators,
                callback_on_step_end=run.after_step,
                callback_on_step_end_tensor_inputs=STEP_TENSORS,
                **more,
            ).images
        watch.lap("decode" if "output_type" not in more else "prepare")
        return images

    with as_planned(models, settings, job):
        if refiner is None:
            images = sample(runs[0], base, request.steps, **size)
        elif request.refiner_strength is None:
            switch = request.switch_at
            latents = sample(runs[0], base, request.steps, denoising_end=switch, output_type="latent", **size)
            images = sample(runs[0], refiner, request.steps, denoising_start=switch, image=latents)
        else:
            # The latents go over as they are: a decode and an encode between the two would only lose detail.
            latents = sample(runs[0], base, request.steps, output_type="latent", **size)
            steps, strength = request.refiner_steps or request.steps, request.refiner_strength
            images = sample(runs[1], refiner, steps, strength=strength, image=latents)
    job.seconds = sum(watch.seconds.values())
    return Result(images, job, watch.seconds)


def note_what_is_dropped(models: Models, request: Request, job: JobReport) -> None:
    """Note in the report what of the request's prompts is too long to be read."""
    pipes = [pipe for pipe in (models.base, models.refiner) if pipe is not None]
    negative = request.negative if request.cfg > 1 else None  # diffusers computes no uncond rows below
    for note in notes_of_dropped(pipes, request.prompt, negative):
        job.add_note(note)


def make_plans(models: Models, request: Request, settings: Settings) -> dict[str, Plan]:
    """The passes of this request in order, by name."""
    base, refiner, known = models.base, models.refiner, models.calibration
    if refiner is None:
        return {"base": _plan(settings, request, _base_calls(base, request.steps), known, base)}
    if request.refiner_strength is None:
        first = _base_calls(base, request.steps, request.switch_at)
        second = _refiner_calls(refiner, request.steps, denoising_start=request.switch_at)
        if not (first and second):
            allowed = f"a fraction that leaves a step of {request.steps} to each model"
            raise SettingsError("--switch-at", request.switch_at, allowed)
        return {"base and refiner": _plan(settings, request, first + second, known, base, refiner)}
    steps = request.refiner_steps or request.steps
    second = _refiner_calls(refiner, steps, strength=request.refiner_strength)
    if not second:
        raise SettingsError(
            "--refiner-strength", request.refiner_strength, f"1/{steps} or more with {steps} refiner steps"
        )
    unknown = (None, "it is the base's that is calibrated")
    return {
        "base": _plan(settings, request, _base_calls(base, request.steps), known, base),
        "refiner": _plan(settings.for_hires(), request, _from_first_step(second), unknown, refiner),
    }


def _plan(settings: Settings, request: Request, calls: list[Call], calibration, *pipes) -> Plan:
    return make_plan(settings, _facts(settings, request, calls, calibration, *pipes))


def _facts(settings: Settings, request: Request, calls: list[Call], calibration, *pipes) -> Facts:
    """What is known before the first step. diffusers computes no uncond rows at CFG scale 1 or less."""
    embeds_guidance = any(p.unet.config.time_cond_proj_dim for p in pipes)
    no_cut = "this model takes the CFG scale as an input and has no uncond rows" if embeds_guidance else None
    if request.cfg <= 1:
        no_cut = "diffusers computes no uncond rows at CFG scale 1 and below, so there is nothing to drop"
    cannot = {"cfg_cutoff": no_cut, "backend": why_not(settings)}
    return Facts(
        loop=Loop(tuple(calls)),
        rows=Rows(cond=request.batch, uncond=0 if no_cut else request.batch, batch=request.batch),
        cfg_scale=request.cfg,
        unet=UNetFacts(
            depth=min(DEEPCACHE_LAYERS * len(p.unet.down_blocks) for p in pipes),
            stages=min(2, *(len(p.unet.up_blocks) for p in pipes)),
        ),
        cannot={technique: reason for technique, reason in cannot.items() if reason},
        timesteps=tuple(call.sigma for call in calls if call.place == 0),
        calibration=calibration[0],
        no_calibration=calibration[1],
    )


def _base_calls(pipe, steps: int, denoising_end: float | None = None) -> list[Call]:
    scheduler = pipe.scheduler
    set_timesteps(scheduler, steps)
    timesteps = list(scheduler.timesteps)
    if denoising_end is not None:
        total = scheduler.config.num_train_timesteps
        last = round(total - denoising_end * total)  # as the pipeline does
        timesteps = [t for t in timesteps if t >= last]
    return [_call(scheduler, index, t, 0) for index, t in enumerate(timesteps)]


def _refiner_calls(pipe, steps: int, strength: float = 1.0, denoising_start: float | None = None) -> list[Call]:
    scheduler = pipe.scheduler
    set_timesteps(scheduler, steps)
    total = len(scheduler.timesteps)
    timesteps, _ = pipe.get_timesteps(steps, strength, "cpu", denoising_start)
    return [_call(scheduler, total - len(timesteps) + k, t, 1) for k, t in enumerate(timesteps)]


def _call(scheduler, index: int, timestep, model: int) -> Call:
    """A second-order scheduler's list of timesteps has one entry a call: 1 for the first of a step, 1 for the
    second.
    """
    return Call(index // scheduler.order, index % scheduler.order, float(timestep), model=model)


def _from_first_step(calls: list[Call]) -> list[Call]:
    return [Call(c.step - calls[0].step, c.place, c.sigma) for c in calls]


@contextmanager
def as_planned(models: Models, settings: Settings, job: JobReport, safe_vae: bool = False) -> Iterator[None]:
    """Context manager: what holds for the whole request is in force. safe_vae: the VAE's precision is fp32 where the
    settings leave it to a pipeline that would compute it so."""
    plan = plan_request(_with_safe_vae(models, settings) if safe_vae else settings, request_facts(models))
    for note in plan.notes:
        job.add_note(note)
    with (
        decoder_as_planned(models.refiner or models.base, models.tiny_vae, plan, job),
        vae_as_planned(models, plan, job),
        nullcontext() if settings.memory == models.placed else memory_as_planned(models, plan, job),
        switches_as_planned(plan),
    ):
        yield


def _with_safe_vae(models: Models, settings: Settings) -> Settings:
    """The pipeline computes a half-precision VAE that is known to overflow in fp32."""
    vae = models.base.vae
    overflows = vae.dtype == torch.float16 and getattr(vae.config, "force_upcast", False)
    if not (overflows and settings.vae.precision == "host"):
        return settings
    return replace(settings, vae=replace(settings.vae, precision="fp32"))


@contextmanager
def decoder_as_planned(pipe, tiny_vae: AutoencoderTiny | None, plan: RequestPlan, job: JobReport) -> Iterator[None]:
    """Context manager: the pipeline that makes the picture decodes as planned."""
    job.decoder = "the model's VAE"
    if plan.config("vae.decoder") != "tiny":
        yield
        return
    full = pipe.vae
    pipe.vae, job.decoder = tiny_vae, "Tiny VAE"
    try:
        with latents_as_sdxls(tiny_vae, full.config):
            yield
    finally:
        pipe.vae = full
