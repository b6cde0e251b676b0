"""Our Triton kernels, without a card."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from sdxl_optim.backends import inductor

TESTS = Path(__file__).with_name("interpreted_kernels.py")


@pytest.mark.slow
def test_by_tritons_interpreter():
    pytest.importorskip("triton")
    if not hasattr(torch.library, "custom_op"):
        pytest.skip("this torch takes no custom operators")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", str(TESTS)]
    run = subprocess.run(
        command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, timeout=250
    )
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-1000:]
    assert " passed" in run.stdout


@pytest.mark.parametrize(
    ("sizes", "is_changed"),
    [({"x": 2048, "r0_": 1280}, True), ({"x": 2048, "r0_": 640}, False), ({"x": 2048, "r0_": 5120}, False),
     ({"y": 2, "x": 1024, "r0_": 1280}, False), ({"x": 2048}, False)],
)  # fmt: skip
def test_the_compiler_sums_up_a_tokens_row_in_few_warps(sizes, is_changed):
    pytest.importorskip("torch._inductor.choices")
    from torch._inductor.runtime.hints import ReductionHint
    from torch._inductor.virtualized import V

    features = SimpleNamespace(reduction_numel=sizes.get("r0_", 1), get_reduction_hint=lambda: ReductionHint.INNER)
    with inductor._short_rows_at_once():
        given = V.choices.triton_kernel_kwargs(None, features, [sizes], {})
    assert ("fixed_config" in given) is is_changed
    assert not is_changed or given["fixed_config"]["num_warps"] == 2
    assert V.choices.triton_kernel_kwargs(None, features, [sizes], {}) == {}
