"""Where a call's time on the GPU goes, by kind of kernel."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

KINDS = (  # the first whose word is in a kernel's name
    ("attention", ("flash", "fmha", "attention", "sdpa")),
    ("copies", ("memcpy", "memset")),
    ("layout", ("nchwtonhwc", "nhwctonchw", "nchw2nhwc", "nhwc2nchw")),
    ("convolution", ("conv", "fprop", "implicit")),
    ("products", ("gemm", "nvjet", "cutlass", "xmma", "splitk", "cublas")),
    ("triton", ("triton",)),
    ("norms", ("norm", "rowwisemoments", "computefusedparams", "welford")),
    ("cat", ("cat",)),
    ("elementwise", ("elementwise", "copy")),
)


def kinds_of(make_calls: Callable[[], object], calls: int) -> tuple[dict[str, str], list[str]]:
    """("ms × number" of a call by kind, the kernels that take most of it). calls: that `make_calls` makes."""
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as profiler:
        make_calls()
        torch.cuda.synchronize()
    ms, number = defaultdict(float), defaultdict(int)
    for event in profiler.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            ms[event.name] += event.time_range.elapsed_us() / 1000 / calls
            number[event.name] += 1
    by_kind, numbers = defaultdict(float), defaultdict(int)
    for name in ms:
        by_kind[kind_of(name)] += ms[name]
        numbers[kind_of(name)] += number[name]
    most = sorted(by_kind, key=by_kind.__getitem__, reverse=True)
    table = {kind: f"{by_kind[kind]:.2f} × {numbers[kind] // calls}" for kind in most}
    top = sorted(ms, key=ms.__getitem__, reverse=True)[:45]
    return table, [f"{ms[name]:7.3f} ms × {number[name] // calls:4}  {name[:140]}" for name in top]


def kind_of(kernel: str) -> str:
    name = kernel.lower()
    return next((kind for kind, words in KINDS if any(word in name for word in words)), "other")
