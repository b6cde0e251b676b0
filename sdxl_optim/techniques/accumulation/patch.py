"""torch's own process-wide switch for fp16 accumulation, set for a while and put back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from sdxl_optim.wording import Text, message


def why_no_fp16_accumulation() -> Text | None:
    """Why half-precision products can't be summed up in half precision here, or None."""
    if not has_fp16_accumulation():
        return message("needs torch {least} or later", least="2.7")
    return None if torch.cuda.is_available() else "needs a CUDA device"


def has_fp16_accumulation() -> bool:
    try:
        return isinstance(torch.backends.cuda.matmul.allow_fp16_accumulation, bool)
    except (AssertionError, AttributeError):  # how a torch that lacks the switch answers
        return False


@contextmanager
def fp16_accumulation() -> Iterator[None]:
    """Context manager: matrix products of fp16 tensors are summed up in fp16: about twice as fast on GeForce cards,
    whose tensor cores are halved at fp32 sums, and less exact (torch.backends.cuda.matmul.allow_fp16_accumulation)."""
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_fp16_accumulation
    matmul.allow_fp16_accumulation = True
    try:
        yield
    finally:
        matmul.allow_fp16_accumulation = before
