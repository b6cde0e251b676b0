"""TensorFloat-32, in which NVIDIA's Ampere and newer compute fp32 products with 10 bits of mantissa."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def tf32(cudnn: str = "host", matmul: str = "host") -> Iterator[None]:
    """Context manager: TF32 is on, off or as before ("host") in cuDNN's convolutions and in matrix products.

    It acts on fp32 alone; half precision is computed as ever.
    """
    switches: Any = ((torch.backends.cudnn, cudnn), (torch.backends.cuda.matmul, matmul))
    before = [(backend, backend.allow_tf32) for backend, wanted in switches if wanted != "host"]
    for backend, wanted in switches:
        if wanted != "host":
            backend.allow_tf32 = wanted == "on"
    try:
        yield
    finally:
        for backend, value in before:
            backend.allow_tf32 = value
