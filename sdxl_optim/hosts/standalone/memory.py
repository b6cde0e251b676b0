"""Offload, fp8 and TF32 in the standalone host, by diffusers' and accelerate's own functions."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING

import diffusers
import torch

from sdxl_optim.planning.plan import Note
from sdxl_optim.report import JobReport
from sdxl_optim.settings import Memory
from sdxl_optim.techniques.memory import fp8
from sdxl_optim.techniques.tf32 import tf32

if TYPE_CHECKING:
    from sdxl_optim.hosts.standalone.generate import Models

METHODS = {
    "staged": "enable_model_cpu_offload",  # whose parts come and go in the order of the stages
    "model": "enable_model_cpu_offload",
    "sequential": "enable_sequential_cpu_offload",
}


@contextmanager
def memory_as_asked(models: Models, memory: Memory, job: JobReport) -> Iterator[None]:
    """While entered, the pipelines' weights lie as the settings ask. Afterwards all of it is undone."""
    if memory == models.placed:
        yield
        return
    pipes = [pipe for pipe in (models.base, models.refiner) if pipe is not None]
    with ExitStack() as stack:
        stack.enter_context(tf32(memory.cudnn_tf32, memory.matmul_tf32))
        if reason := why_no_tf32(memory, models.base.device):
            job.add_note(Note("TF32", reason))
        if memory.weights == "fp8":
            if reason := why_no_fp8():
                job.add_note(Note("Memory weights", reason))
            else:
                for pipe in pipes:
                    stack.enter_context(_cast(pipe))
                job.memory.append("UNet in fp8")
        if memory.offload != "host":
            if reason := why_no_offload(models.base.device):
                job.add_note(Note("Memory offload", reason))
            else:
                stack.enter_context(offloaded(pipes, METHODS[memory.offload]))
                job.memory.append(f"{memory.offload} offload")
        yield


def why_not(memory: Memory, device: torch.device) -> str | None:
    """Why some of these settings can't be had on the device, or None."""
    if memory.offload != "host" and (reason := why_no_offload(device)):
        return reason
    if memory.weights == "fp8" and (reason := why_no_fp8()):
        return reason
    return why_no_tf32(memory, device)


def why_no_tf32(memory: Memory, device: torch.device) -> str | None:
    if {memory.cudnn_tf32, memory.matmul_tf32} != {"host"} and device.type != "cuda":
        return "TF32 is a format of NVIDIA's cards, and there is none here"
    return None


def why_no_fp8() -> str | None:
    if not hasattr(diffusers.ModelMixin, "enable_layerwise_casting"):
        return f"diffusers {diffusers.__version__} can't store a model's weights in fp8; newer ones can"
    return fp8.why_not()


def why_no_offload(device: torch.device) -> str | None:
    if device.type == "cpu":
        return "there is no GPU here whose memory it could save"
    if find_spec("accelerate") is None:
        return "the package accelerate is not installed"
    return None


@contextmanager
def offloaded(pipes: list, method: str) -> Iterator[None]:
    """While entered, the pipelines' parts come to their device by diffusers' own `method`."""
    devices = [pipe.device for pipe in pipes]
    for pipe, device in zip(pipes, devices, strict=True):
        getattr(pipe, method)(device=device)
    try:
        yield
    finally:
        for pipe, device in zip(pipes, devices, strict=True):
            pipe.remove_all_hooks()
            pipe.to(device)


@contextmanager
def _cast(pipe) -> Iterator[None]:
    """While entered, the pipeline has a UNet whose weights diffusers stores in fp8 and computes with in their own
    precision. diffusers can't undo that, so it is a copy, and the UNet itself waits in main memory."""
    unet, device = pipe.unet, pipe.unet.device
    pipe.unet = copy.deepcopy(unet.to("cpu"))
    try:
        pipe.unet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=unet.dtype)
        pipe.unet.to(device)
        yield
    finally:
        pipe.unet = unet.to(device)
