"""Offload, fp8 and TF32 in the standalone host, by diffusers' and accelerate's own functions."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import torch

from sdxl_optim.planning.plan import RequestPlan
from sdxl_optim.report import JobReport
from sdxl_optim.techniques.memory.counts import MemoryReport
from sdxl_optim.techniques.tf32.patch import tf32

if TYPE_CHECKING:
    from sdxl_optim.hosts.standalone.generate import Models

METHODS = {
    "staged": "enable_model_cpu_offload",  # whose parts come and go in the order of the stages
    "model": "enable_model_cpu_offload",
    "sequential": "enable_sequential_cpu_offload",
}


@contextmanager
def memory_as_planned(models: Models, plan: RequestPlan, job: JobReport) -> Iterator[None]:
    """Context manager: the pipelines' weights lie as planned. Afterwards all of it is undone."""
    offload, weights = plan.config("memory.offload"), plan.config("memory.weights")
    pipes = [pipe for pipe in (models.base, models.refiner) if pipe is not None]
    with ExitStack() as stack:
        stack.enter_context(tf32(*(plan.config("memory.cudnn_tf32") or ("host", "host"))))
        if weights is not None:
            for pipe in pipes:
                stack.enter_context(_cast(pipe))
        if offload is not None:
            stack.enter_context(offloaded(pipes, METHODS[offload]))
        if weights is not None or offload is not None:
            job.memory = MemoryReport(fp8=weights is not None, offload=offload)
        yield


@contextmanager
def offloaded(pipes: list, method: str) -> Iterator[None]:
    """Context manager: the pipelines' parts come to their device by diffusers' own `method`."""
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
    """Context manager: the pipeline has a UNet whose weights diffusers stores in fp8 and computes with in their own
    precision. diffusers can't undo that, so it is a copy, and the UNet itself waits in main memory."""
    unet, device = pipe.unet, pipe.unet.device
    pipe.unet = copy.deepcopy(unet.to("cpu"))
    try:
        pipe.unet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=unet.dtype)
        pipe.unet.to(device)
        yield
    finally:
        pipe.unet = unet.to(device)
