"""Our Triton kernels, by Triton's interpreter, against torch in fp32; and that traced blocks take them.

test_kernels.py runs this in a process of its own: Triton asks when it is imported whether it interprets.
"""

from __future__ import annotations

import ldm_unet
import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F

from sdxl_optim.backends import fused as fusing
from sdxl_optim.backends import kernels

DIGIT = 2**-10  # half precision's last around 1


def heads(*shape: int, extra: int = 0) -> torch.Tensor:
    """[B, heads, N, D], as an attention makes them: a part of a wider product's rows."""
    b, n, heads, d = shape
    return torch.randn(b, n, heads * d + extra)[..., extra:].unflatten(-1, (heads, d)).transpose(1, 2).half()


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.float() - expected).norm() / expected.norm())


@pytest.mark.parametrize(("n", "keys", "d"), [(100, 77, 64), (64, 16, 32), (130, 128, 64), (5, 1, 16)])
def test_short_attention(n, keys, d):
    torch.manual_seed(0)
    q, k, v = heads(2, n, 3, d), heads(2, keys, 3, d, extra=32), heads(2, keys, 3, d, extra=32)
    out = kernels.short_attention(q, k, v)
    assert error(out, F.scaled_dot_product_attention(q.float(), k.float(), v.float())) < DIGIT
    assert out.transpose(1, 2).is_contiguous()


def test_short_attention_of_large_scores_is_no_nan():
    q = torch.full((1, 1, 16, 16), 200.0).half()
    assert torch.equal(kernels.short_attention(q, q, q), q)


@pytest.mark.parametrize("offset", [0.0, 50.0])
@pytest.mark.parametrize(("channels", "size"), [(320, (16, 16)), (960, (9, 7)), (64, (128, 40))])
def test_group_norm(channels, size, offset):
    torch.manual_seed(0)
    x = (torch.randn(2, channels, *size) * 2 + offset).half().to(memory_format=torch.channels_last)
    weight, bias = torch.randn(channels).half(), torch.randn(channels).half()
    out = kernels.group_norm(x, 32, weight, bias, 1e-5)
    assert error(out, F.group_norm(x.float(), 32, weight.float(), bias.float(), 1e-5)) < DIGIT
    assert out.stride() == x.stride()


def operations(function, *tensors) -> list[str]:
    graph = make_fx(function, tracing_mode="fake", _allow_non_fake_inputs=True)(*tensors)
    return [str(node.target) for node in graph.graph.nodes]


@pytest.fixture
def on_a_card(monkeypatch):
    """Traced blocks take the kernels, though there is no card."""
    monkeypatch.setattr(fusing, "_is_on_a_card", lambda tensor: True)


@pytest.fixture
def block():
    unet = ldm_unet.tiny_unet("sdxl").half()
    return next(m for m in unet.modules() if type(m).__name__ == "SpatialTransformer")


@pytest.fixture
def given(block):
    torch.manual_seed(0)
    x = torch.randn(2, block.in_channels, 4, 4).half().to(memory_format=torch.channels_last)
    return x, torch.randn(2, 7, block.transformer_blocks[0].attn2.to_k.in_features).half()


class Sdpa:
    """The attention's products by torch's own function, as the WebUI has it."""

    def __init__(self, attention):
        self.attention = attention

    def __call__(self, x, context=None):
        a, context = self.attention, x if context is None else context
        q, k, v = (
            t.unflatten(-1, (1, -1)).transpose(1, 2) for t in (a.to_q(x), a.to_k(context), a.to_v(context))
        )
        return a.to_out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


@torch.no_grad()
def test_a_traced_block_takes_them(block, given, on_a_card, monkeypatch):
    for attention in (m for m in block.modules() if hasattr(m, "to_q")):
        monkeypatch.setattr(attention, "forward", Sdpa(attention))
    expected = block(*given).float()

    def call(*tensors):
        with fusing.fused(block, tensors):
            return block(*tensors)

    found = operations(call, *given)
    depth = len(block.transformer_blocks)
    assert found.count("sdxl_optim.group_statistics.default") == 1
    assert found.count("sdxl_optim.short_attention.default") == 2 * depth  # its own few tokens as well
    assert error(call(*given), expected) < 5 * DIGIT
    assert not any("forward" in vars(m) and not isinstance(vars(m)["forward"], Sdpa) for m in block.modules())


@torch.no_grad()
def test_what_they_do_not_take_is_left_alone(on_a_card):
    q, k, v = (heads(1, 200, 2, 16) for _ in range(3))
    mask = torch.zeros(200, 20).half()
    few = k[:, :, :20], v[:, :, :20]

    def call(**more):
        def function(q, k, v):
            with fusing.fused(torch.nn.Identity(), (q, k, v)):
                return F.scaled_dot_product_attention(q, k, v, **more)

        return function

    assert "sdxl_optim.short_attention.default" in operations(call(), q, *few)
    assert "sdxl_optim.short_attention.default" in operations(call(attn_mask=None, dropout_p=0.0), q, *few)
    for tensors, more in (
        ((q, k, v), {}),
        ((q, *few), {"attn_mask": mask}),
        ((q, *few), {"is_causal": True}),
        ((q, *few), {"scale": 1.0}),
        ((q.float(), *(t.float() for t in few)), {}),
        ((q[..., :12], *(t[..., :12] for t in few)), {}),
    ):
        assert "sdxl_optim.short_attention.default" not in operations(call(**more), *tensors)


@torch.no_grad()
def test_off_the_card_nothing_is_laid_over(block, given):
    def call(*tensors):
        with fusing.fused(block, tensors):
            return block(*tensors)

    assert not any("sdxl_optim" in name for name in operations(call, *given))
