"""The VAE's precision, tiles and slices in the standalone host: diffusers' own functions, and a watch for NaNs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from diffusers import AutoencoderKL

from sdxl_optim.planning.plan import RequestPlan
from sdxl_optim.report import JobReport
from sdxl_optim.sampling.note import Note
from sdxl_optim.techniques.vae.counts import VaeReport
from sdxl_optim.techniques.vae.patch import DTYPES, vae_attached
from sdxl_optim.techniques.vae.tiling import FACTOR

if TYPE_CHECKING:
    from sdxl_optim.hosts.standalone.generate import Models


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
