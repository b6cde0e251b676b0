"""Many pictures stage by stage: encode all prompts, denoise all, decode all. Each part of the model then comes to the
device once, whatever the number of pictures ("batch processing" in
https://www.felixsanz.dev/articles/ultimate-guide-to-optimizing-stable-diffusion-xl)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

import torch

from sdxl_optim.bench.measure import Stopwatch
from sdxl_optim.errors import SettingsError
from sdxl_optim.hosts.standalone.generate import (
    Models,
    Request,
    Result,
    as_planned,
    make_plans,
    note_what_is_dropped,
)
from sdxl_optim.hosts.standalone.run import STEP_TENSORS, DiffusersRun
from sdxl_optim.report import JobReport
from sdxl_optim.settings import Settings
from sdxl_optim.unet.patching import replaced

EMBEDS = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")


@torch.no_grad()
def generate_many(
    models: Models, requests: Sequence[Request], settings: Settings, on_call: Callable[[], object] = lambda: None
) -> Result:
    """The pictures of all requests in their order, the same as one by one. Raises SettingsError with a refiner."""
    if models.refiner is not None:
        raise SettingsError("--prompts", "with --refiner", "one prompt with a refiner, or many without")
    pipe, job, watch = models.base, JobReport(notes=list(models.notes)), Stopwatch(models.base._execution_device)
    with contextlib.ExitStack() as stack:
        stack.enter_context(as_planned(models, settings, job, safe_vae=True))
        encoded = [_encode(pipe, request) for request in requests]
        watch.lap("encode")
        latents = []
        stays = stack.enter_context(contextlib.ExitStack())  # an offloaded UNet, from one picture to the next
        stays.enter_context(replaced(pipe, "maybe_free_model_hooks", lambda original: lambda: None))
        for index, (request, embeds) in enumerate(zip(requests, encoded, strict=True)):
            plan = make_plans(models, request, settings)["base"]
            run = DiffusersRun(plan, "base", watch, on_call)
            job.add_pass(index, run.report)
            note_what_is_dropped(models, request, job)
            latents.append(_denoise(pipe, request, embeds, run))
            watch.lap("prepare")
        stays.close()
        images = [image for one in latents for image in _decode(pipe, one)]
        watch.lap("decode")
        pipe.maybe_free_model_hooks()
    job.seconds = sum(watch.seconds.values())
    return Result(images, job, watch.seconds)


def _encode(pipe, request: Request) -> dict[str, torch.Tensor | None]:
    found = pipe.encode_prompt(
        request.prompt,
        device=pipe._execution_device,
        num_images_per_prompt=1,  # the denoising call repeats them
        do_classifier_free_guidance=request.cfg > 1,
        negative_prompt=request.negative,
    )
    return dict(zip(EMBEDS, found, strict=True))


def _denoise(pipe, request: Request, embeds: dict, run: DiffusersRun) -> torch.Tensor:
    """[B, 4, H/8, W/8]."""
    with run.attached(pipe):
        return pipe(
            **embeds,
            num_images_per_prompt=request.batch,
            num_inference_steps=request.steps,
            guidance_scale=run.guidance_scale(request.cfg),
            generator=[torch.Generator("cpu").manual_seed(request.seed + k) for k in range(request.batch)],
            width=request.width,
            height=request.height,
            callback_on_step_end=run.after_step,
            callback_on_step_end_tensor_inputs=STEP_TENSORS,
            output_type="latent",
        ).images


def _decode(pipe, latents: torch.Tensor) -> list:
    """As the pipeline does at its end."""
    config = pipe.vae.config
    latents = latents.to(pipe.vae.dtype) / config.scaling_factor
    mean, std = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
    if mean is not None and std is not None:
        mean, std = (latents.new_tensor(of).view(1, -1, 1, 1) for of in (mean, std))
        latents = latents * std + mean
    decoded = pipe.vae.decode(latents, return_dict=False)[0]
    if pipe.watermark is not None:
        decoded = pipe.watermark.apply_watermark(decoded)
    return pipe.image_processor.postprocess(decoded.float(), output_type="pil")
