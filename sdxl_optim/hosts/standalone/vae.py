"""The VAE's precision, tiles and slices in the standalone host: diffusers' own functions, and a watch for NaNs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from diffusers import AutoencoderKL

from sdxl_optim.planning.plan import Note
from sdxl_optim.report import JobReport
from sdxl_optim.settings import Vae
from sdxl_optim.techniques.vae.patch import VaeReport, pick_precision, vae_attached
from sdxl_optim.techniques.vae.tiling import FACTOR

if TYPE_CHECKING:
    from sdxl_optim.hosts.standalone.generate import Models

OWN_NORMS = "diffusers' tiles have norms of their own; norms of the picture are to be had in the WebUI alone"


@contextmanager
def vae_as_asked(models: Models, settings: Vae, job: JobReport) -> Iterator[None]:
    """While entered, the pipelines' VAEs work as the settings ask: by slices of one picture, in tiles, in the chosen
    precision."""
    pipes = [pipe for pipe in (models.base, models.refiner) if pipe is not None]
    vaes = {id(pipe.vae): pipe.vae for pipe in pipes if isinstance(pipe.vae, AutoencoderKL)}
    seen = VaeReport()
    with ExitStack() as stack:
        for vae in vaes.values():
            stack.enter_context(_sliced(vae))
            if settings.tiling:
                stack.enter_context(_tiled(vae, settings.tile_size))
                if settings.tile_norms == "picture":
                    job.add_note(Note("VAE tile norms", OWN_NORMS))
            if settings.tiling or settings.precision != "host":
                dtype, reason = pick_precision(settings.precision, vae.device)
                if reason:
                    job.add_note(Note("VAE precision", reason, refused=False))
                stack.enter_context(vae_attached(vae.encoder, vae.decoder, dtype, None, seen))
        yield
    job.vae = seen.facts() + [f"tiles of {settings.tile_size}"] * bool(settings.tiling and vaes)
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
