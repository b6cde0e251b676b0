"""Layers of a UNet by other operations."""

import pytest
import torch
from torch.nn import functional as F

from sdxl_optim.backends.rewrites.half_precision import without_autocast
from sdxl_optim.backends.rewrites.layer_rewrite import LayerRewrite, itself, replacements
from sdxl_optim.backends.rewrites.layers import CAPTURE_FRIENDLY_LAYERS, geglu, spread_group_norm
from sdxl_optim.unet.patching import forwards_replaced
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


def test_a_layer_is_rewritten_by_the_first_kind_that_it_is_of():
    root = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Sequential(torch.nn.ReLU()), torch.nn.GELU())
    inner = LayerRewrite(lambda m: isinstance(m, torch.nn.Sequential) and m is not root, lambda m: itself(twice)(m[0]))
    linear = LayerRewrite(lambda m: isinstance(m, torch.nn.Linear), itself(twice))
    others = LayerRewrite(lambda m: isinstance(m, (torch.nn.Linear, torch.nn.GELU)), itself(lambda *_: None))
    found = list(replacements(root, [linear, inner, others]))
    assert [layer for layer, _ in found] == [root[0], root[1][0], root[2]]
    x = torch.randn(3, 2)
    with forwards_replaced(found):
        assert root[2](x) is None
        assert torch.equal(root[0](x), 2 * torch.nn.functional.linear(x, root[0].weight, root[0].bias))
        assert torch.equal(root[1](x), 2 * x.relu())
    assert torch.equal(root[1](x), x.relu())


def twice(layer, original, x):
    return 2 * original(x)


def test_off_the_gpu_all_layers_compute_what_they_did():
    unet, inputs = tiny_unet(), random_inputs(tiny_unet().config)
    kinds = {type(layer).__name__ for layer, _ in replacements(unet, CAPTURE_FRIENDLY_LAYERS)}
    assert kinds == {"GroupNorm", "GEGLU"}
    with torch.no_grad():
        expected = unet(*inputs.args)
        with without_autocast(unet):
            assert torch.equal(unet(*inputs.args), expected)
    assert not any("forward" in vars(module) for module in unet.modules())
