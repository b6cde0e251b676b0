"""What the article does to a whole pipeline and is no setting, by what diffusers and torch offer. Undone on exit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL

from sdxl_optim.hosts.standalone.generate import Models

VAE_FP16_FIX = "madebyollin/sdxl-vae-fp16-fix"


@dataclass(frozen=True)
class Change:
    """done: a context manager over the models. why_not: the reason why it can't be here, or nothing."""

    done: Callable[[Models], AbstractContextManager]
    why_not: Callable[[Models], str] = lambda models: ""


def _pipes(models: Models) -> list:
    return [pipe for pipe in (models.base, models.refiner) if pipe is not None]


def _cuda_alone(what: str) -> Callable[[Models], str]:
    return lambda models: "" if models.base.device.type == "cuda" else f"{what}; there is no CUDA device here"


@contextmanager
def _nothing(models: Models) -> Iterator[None]:
    yield


@contextmanager
def _fp32(models: Models) -> Iterator[None]:
    before = models.base.unet.dtype
    for pipe in _pipes(models):
        pipe.to(torch.float32)
    try:
        yield
    finally:
        for pipe in _pipes(models):
            pipe.to(before)


@contextmanager
def _channels_last(models: Models) -> Iterator[None]:
    for pipe in _pipes(models):
        pipe.unet.to(memory_format=torch.channels_last)
    try:
        yield
    finally:
        for pipe in _pipes(models):
            pipe.unet.to(memory_format=torch.contiguous_format)


@contextmanager
def _vae_fp16_fix(models: Models) -> Iterator[None]:
    fixed = AutoencoderKL.from_pretrained(VAE_FP16_FIX, torch_dtype=models.base.unet.dtype, local_files_only=True)
    before = models.base.vae
    models.base.vae = fixed.to(models.base.device)
    try:
        yield
    finally:
        models.base.vae = before


def _why_no_vae_fp16_fix(models: Models) -> str:
    reason = _cuda_alone("on the CPU the VAE computes in fp32")(models)
    if reason:
        return reason
    try:
        AutoencoderKL.load_config(VAE_FP16_FIX, local_files_only=True)
    except OSError:
        return f"{VAE_FP16_FIX} is not on this machine"
    return ""


@contextmanager
def _vae_slicing(models: Models) -> Iterator[None]:
    with ExitStack() as stack:
        for vae in {id(pipe.vae): pipe.vae for pipe in _pipes(models)}.values():
            vae.enable_slicing()
            stack.callback(vae.disable_slicing)
        yield


CHANGES = {
    "": Change(_nothing),
    "fp32": Change(_fp32, _cuda_alone("on the CPU every row computes in fp32")),
    "channels-last": Change(_channels_last),
    "vae fp16 fix": Change(_vae_fp16_fix, _why_no_vae_fp16_fix),
    "vae slicing": Change(_vae_slicing),
}
