"""Layers of a UNet by other operations."""

import pytest
import torch
from torch.nn import functional as F

from sdxl_optim.backends.rewrites.half_precision import without_autocast
from sdxl_optim.backends.rewrites.layers import capture_friendly_layers, geglu, spread_group_norm
from tests.ldm_unet import GEGLU, random_inputs, tiny_unet


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("offset", [0.0, 20.0])
def test_group_norm_by_other_operations(rows, offset):
    torch.manual_seed(0)
    x = torch.randn(rows, 12, 16, 8) * torch.rand(rows, 12, 1, 1) + offset
    weight, bias = torch.randn(12), torch.randn(12)
    difference = spread_group_norm(x, 4, weight, bias, 1e-5) - F.group_norm(x, 4, weight, bias, 1e-5)
    assert difference.abs().max() < 2**-10  # half precision's last digit around 1


def test_a_constant_group_is_no_nan():
    x = torch.full((1, 4, 8, 8), 3.3)
    assert spread_group_norm(x, 2, torch.ones(4), torch.zeros(4), 1e-5).abs().max() < 1e-2


def test_geglu_is_off_by_less_than_half_precisions_last_digit():
    torch.manual_seed(0)
    layer = GEGLU(8, 32).requires_grad_(False)
    x = torch.randn(2, 5, 8)
    expected = layer(x)
    difference = (geglu(x, layer.proj.weight, layer.proj.bias) - expected).abs()
    assert difference.max() <= 2**-11 * max(1, expected.abs().max())


def test_off_the_gpu_all_layers_compute_what_they_did():
    unet, inputs = tiny_unet(), random_inputs(tiny_unet().config)
    kinds = {type(layer).__name__ for layer, _ in capture_friendly_layers(unet)}
    assert kinds == {"GroupNorm", "GEGLU"}
    with torch.no_grad():
        expected = unet(*inputs.args)
        with without_autocast(unet):
            assert torch.equal(unet(*inputs.args), expected)
    assert not any("forward" in vars(module) for module in unet.modules())
