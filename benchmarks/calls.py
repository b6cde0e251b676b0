"""Calls of a full-size SDXL of the ldm layout with random weights, as the WebUI makes them and bare."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import ldm_unet
from host_loop import plan_for

from sdxl_optim.backends.rewrites.half_precision import without_autocast
from sdxl_optim.backends.rewrites.weight_layout import FusedLinear, packed_weight, text_kv_of
from sdxl_optim.run import Run
from sdxl_optim.sampling.loop import Loop, Rows
from sdxl_optim.unet.patching import forwards_replaced

CUDA = torch.cuda.is_available()
DEVICE, HALF = ("cuda", torch.float16) if CUDA else ("cpu", torch.bfloat16)


class GroupNorm32(nn.GroupNorm):
    """As in ldm and sgm: computes in fp32, which needs autocast to bring the weights there (on CUDA alone it does)."""

    def forward(self, x):
        return super().forward(x.float()).type(x.dtype) if x.is_cuda else super().forward(x)


def sdpa(self, x, context=None):
    context = x if context is None else context
    q, k, v = (
        t.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        for t in (self.to_q(x), self.to_k(context), self.to_v(context))
    )
    out = nn.functional.scaled_dot_product_attention(q, k, v)
    return self.to_out(out.transpose(1, 2).flatten(2))


ldm_unet.CrossAttention.forward = sdpa


class Model:
    """The UNet and inputs for it. casting: what its calls are made under, autocast as in the WebUI."""

    def __init__(self, tiny: bool):
        self.casting = lambda: torch.autocast(DEVICE, dtype=HALF)
        config = ldm_unet.SDXL.tiny() if tiny else ldm_unet.SDXL
        self.size = 8 if tiny else 128
        with torch.device("meta"):
            unet = ldm_unet.UNetModel(config)
        self.unet = unet.to(HALF).to_empty(device=DEVICE).eval().requires_grad_(False)
        torch.manual_seed(0)
        for p in self.unet.parameters():
            if p.dim() > 1:
                p.normal_(0, 0.3 / p[0].numel() ** 0.5)  # small residual branches: fp16 never overflows
            else:
                p.fill_(0)
        for m in self.unet.modules():
            if isinstance(m, (nn.GroupNorm, nn.LayerNorm)):
                m.weight.fill_(1)
        self.upcasting(True)
        # sgm casts the timestep embedding to the UNet's type
        time_embed = type("TimeEmbed", (nn.Sequential,), {"forward": _cast_and_run})
        self.unet.time_embed.__class__ = time_embed
        torch.cuda.synchronize() if CUDA else None

    def upcasting(self, on: bool) -> None:
        for block in self.unet.modules():
            if isinstance(block, nn.Sequential):
                for m in block:
                    if isinstance(m, nn.GroupNorm):
                        m.__class__ = GroupNorm32 if on else nn.GroupNorm

    def inputs(self, rows: int, call: int = 0, size: tuple[int, int] | None = None) -> tuple:
        config, (h, w) = self.unet.config, size or (self.size, self.size)
        generator = torch.Generator(DEVICE).manual_seed(call)

        def randn(*shape):
            return torch.randn(*shape, generator=generator, device=DEVICE).to(HALF)

        t = torch.full((rows,), 999.0 - call % 999, device=DEVICE, dtype=HALF)
        return randn(rows, 4, h, w), t, randn(rows, 77, config.context), randn(rows, config.y_channels)


def _cast_and_run(self, x):
    return nn.Sequential.forward(self, x.to(self[0].weight.dtype))


@contextlib.contextmanager
def bare(model: Model):
    """Calls in half precision without autocast and without norms that upcast."""
    before, model.casting = model.casting, lambda: torch.autocast(DEVICE, enabled=False)
    model.upcasting(False)
    try:
        yield
    finally:
        model.casting = before
        model.upcasting(True)


@contextlib.contextmanager
def same_call(model: Model):
    """Eager calls of what a backend prepares, while the weights lie as it wants them."""
    before, model.casting = model.casting, contextlib.nullcontext
    try:
        with without_autocast(model.unet), forwards_replaced(_text_as_one_product(model.unet)):
            yield
    finally:
        model.casting = before


def _text_as_one_product(unet):
    """A prepared call makes these ahead."""
    for module in unet.modules():
        layers = text_kv_of(module)
        if layers and (weight := packed_weight(layers)) is not None:
            yield from FusedLinear(layers, weight).forwards()


def wait() -> None:
    if CUDA:
        torch.cuda.synchronize()


def run_calls(model, settings: dict, execution, calls: list[int], size=None, watch=None, rows_total=2) -> Run:
    """One pass whose k-th call has calls[k] rows; `watch(k, function)` makes the call."""
    loop = Loop.of_steps([1] * len(calls))
    half = rows_total // 2
    plan = plan_for(settings, loop, Rows(half, half, half), model.unet)
    given = [model.inputs(rows, k, size) for k, rows in enumerate(calls)]
    with torch.no_grad(), model.casting(), Run(plan, execution=execution) as run:
        run.attach(model.unet)
        for rows, inputs, k in zip(calls, given, range(len(calls)), strict=True):
            run.begin_call(rows, rows_total, half)
            if watch:
                watch(k, lambda inputs=inputs: model.unet(*inputs))
            else:
                model.unet(*inputs)
    return run
