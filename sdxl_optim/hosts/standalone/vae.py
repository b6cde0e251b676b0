"""The VAE's precision, tiles and slices in the standalone host: diffusers' own functions, and a watch for NaNs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import torch
from diffusers import AutoencoderKL, AutoencoderTiny

from sdxl_optim.planning.plan import RequestPlan
from sdxl_optim.report import JobReport
from sdxl_optim.sampling.note import Note
from sdxl_optim.techniques.vae.counts import VaeReport
from sdxl_optim.techniques.vae.patch import DTYPES, vae_attached
from sdxl_optim.techniques.vae.tiling import FACTOR
from sdxl_optim.unet.patching import replaced

if TYPE_CHECKING:
    from sdxl_optim.hosts.standalone.generate import Models

SDXL_SCALE = 0.13025  # of SDXL's latents, which TAESDXL decodes


def has_own_space(config) -> bool:
    """Whether a VAE's latents have a mean and a deviation by channel. config: the VAE's."""
    return all(getattr(config, name, None) is not None for name in ("latents_mean", "latents_std"))


@contextmanager
def latents_as_sdxls(tiny: AutoencoderTiny, config) -> Iterator[None]:
    """Context manager: the tiny decoder is given SDXL's latents, whatever mean and deviation the model's have.

    config: of the model's VAE, which says how its latents [B, C, h, w] become what a decoder of SDXL takes.
    """
    if not has_own_space(config):
        yield
        return

    def make(original):
        def decode(latents: torch.Tensor, *args, **more):
            mean, std = (latents.new_tensor(of).view(1, -1, 1, 1) for of in (config.latents_mean, config.latents_std))
            own = tiny.config.scaling_factor  # the pipeline has divided by it
            plain = latents * own * std / config.scaling_factor + mean
            return original(plain * SDXL_SCALE / own, *args, **more)

        return decode

    with replaced(tiny, "decode", make):
        yield


@contextmanager
def vae_as_planned(models: Models, plan: RequestPlan, job: JobReport) -> Iterator[None]:
    """Context manager: the pipelines' VAEs work as planned: by slices of one picture, in tiles, in the chosen
    precision."""
    precision, tiles = plan.config("vae.precision"), plan.config("vae.tiling")
    pipes = [pipe for pipe in (models.base, models.refiner) if pipe is not None]
    vaes = {id(pipe.vae): pipe.vae for pipe in pipes if isinstance(pipe.vae, AutoencoderKL)}
    seen = VaeReport()
    with ExitStack() as stack:
        for vae in vaes.values():
            stack.enter_context(_sliced(vae))
            if tiles is not None:
                stack.enter_context(_tiled(vae, tiles.size))
            if tiles is not None or precision is not None:
                dtype = None if precision is None else DTYPES[precision]
                stack.enter_context(vae_attached(vae.encoder, vae.decoder, dtype, None, seen))
        yield
    seen.tile_size = tiles.size if tiles is not None and vaes else None
    job.vae = seen
    for text in seen.retries:
        job.add_note(Note("VAE", text, refused=False))


@contextmanager
def _sliced(vae: AutoencoderKL) -> Iterator[None]:
    """One picture of a batch at a time, as the WebUI does; the pictures are the same."""
    before = vae.use_slicing
    vae.enable_slicing()
    try:
        yield
    finally:
        vae.use_slicing = before


@contextmanager
def _tiled(vae: AutoencoderKL, pixels: int) -> Iterator[None]:
    before = vae.use_tiling, vae.tile_sample_min_size, vae.tile_latent_min_size
    vae.enable_tiling()
    vae.tile_sample_min_size, vae.tile_latent_min_size = pixels, pixels // FACTOR
    try:
        yield
    finally:
        vae.use_tiling, vae.tile_sample_min_size, vae.tile_latent_min_size = before
