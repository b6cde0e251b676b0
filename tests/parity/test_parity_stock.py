"""The tests' own UNet computes what diffusers' does with the same weights: all comparisons stand on it."""

from __future__ import annotations

import ldm_unet
import pytest
import torch

pytest.importorskip("diffusers")


def relative_error(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize("name", ldm_unet.CONFIGS)
@pytest.mark.parametrize("size", [(16, 16), (8, 24)])
def test_stock_call_agrees_with_diffusers(name, size):
    unet = ldm_unet.tiny_unet(name, layers=2)
    inputs = ldm_unet.random_inputs(unet.config, size=size)
    ours = unet(*inputs.args)
    theirs = ldm_unet.to_diffusers(unet)(*inputs.diffusers_args, **inputs.diffusers_kwargs).sample
    assert relative_error(ours, theirs) < 1e-4


def test_a_wrong_weight_would_be_seen():
    unet = ldm_unet.tiny_unet("sdxl", layers=2)
    theirs = ldm_unet.to_diffusers(unet)
    unet.output_blocks[4][1].transformer_blocks[1].ff.net[2].weight.mul_(1.1)
    inputs = ldm_unet.random_inputs(unet.config)
    expected = theirs(*inputs.diffusers_args, **inputs.diffusers_kwargs).sample
    assert relative_error(unet(*inputs.args), expected) > 1e-4
