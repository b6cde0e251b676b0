"""What the article does to a whole pipeline, each by what diffusers, accelerate and torch offer. Undone on exit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from diffusers import AutoencoderKL

from sdxl_optim.host.diffusers.generate import Models
from sdxl_optim.host.diffusers.memory import offloaded
from sdxl_optim.memory.tf32 import tf32

VAE_FP16_FIX = "madebyollin/sdxl-vae-fp16-fix"


@dataclass(frozen=True)
class Change:
    """done: a context manager over the models. why_not: the reason why it can't be here, or nothing."""

    done: Callable[[Models], object]
    why_not: Callable[[Models], str] = lambda models: ""


def _pipes(models: Models) -> list:
    return [pipe for pipe in (models.base, models.refiner) if pipe is not None]


def _cuda_alone(what: str) -> Callable[[Models], str]:
    return lambda models: "" if models.base.device.type == "cuda" else f"{what}; there is no CUDA device here"


def _package(name: str, what: str) -> Callable[[Models], str]:
    def why_not(models: Models) -> str:
        if find_spec(name) is None:
            return f"the package {name} is not installed"
        return f"this version does not run {what}"

    return why_not


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
def _tf32(models: Models) -> Iterator[None]:
    with tf32(matmul="on"), _fp32(models):
        yield


def _offload(models: Models, method: str):
    return offloaded(_pipes(models), method)


@contextmanager
def _compile(models: Models) -> Iterator[None]:
    unets = [pipe.unet for pipe in _pipes(models)]
    for pipe in _pipes(models):
        pipe.unet = torch.compile(pipe.unet, mode="reduce-overhead", fullgraph=True)
    try:
        yield
    finally:
        for pipe, unet in zip(_pipes(models), unets, strict=True):
            pipe.unet = unet
        torch.compiler.reset()


def _why_no_compiling(models: Models) -> str:
    reason = _cuda_alone("it is measured on a GPU")(models)
    return reason or ("" if find_spec("triton") else "torch.compile needs the package triton")


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
def _vae(models: Models, way: str) -> Iterator[None]:
    with ExitStack() as stack:
        for vae in {id(pipe.vae): pipe.vae for pipe in _pipes(models)}.values():
            getattr(vae, f"enable_{way}")()
            stack.callback(getattr(vae, f"disable_{way}"))
        yield


CHANGES = {
    "": Change(_nothing),
    "fp32": Change(_fp32, _cuda_alone("on the CPU every row computes in fp32")),
    "tf32": Change(_tf32, _cuda_alone("TF32 is a format of GPUs")),
    "cudnn without tf32": Change(lambda models: tf32(cudnn="off"), _cuda_alone("TF32 is a format of GPUs")),
    "model offload": Change(lambda m: _offload(m, "enable_model_cpu_offload"), _cuda_alone("it saves GPU memory")),
    "sequential offload": Change(
        lambda m: _offload(m, "enable_sequential_cpu_offload"), _cuda_alone("it saves GPU memory")
    ),
    "staged": Change(_nothing, lambda models: "this version loads all parts at once; Model CPU offload comes nearest"),
    "stable-fast": Change(_nothing, _package("sfast", "Stable Fast")),
    "tensorrt": Change(_nothing, _package("tensorrt", "TensorRT")),
    "compile": Change(_compile, _why_no_compiling),
    "onediff": Change(_nothing, _package("onediff", "OneDiff")),
    "channels-last": Change(_channels_last),
    "vae fp16 fix": Change(_vae_fp16_fix, _why_no_vae_fp16_fix),
    "vae slicing": Change(lambda m: _vae(m, "slicing")),
    "vae tiling": Change(lambda m: _vae(m, "tiling")),
}
