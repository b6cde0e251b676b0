"""Our Triton kernels, by Triton's interpreter, against torch in fp32; and that traced blocks take them.

test_kernels.py runs this in a process of its own: Triton asks when it is imported whether it interprets.
"""

from __future__ import annotations

import ldm_unet
import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F

from sdxl_optim.backends.rewrites.triton import kernels, substitute

try:
    from sdxl_optim.backends.rewrites.triton import hopper
except ImportError:
    hopper = None  # this Triton has no tensor descriptors

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


@pytest.fixture
def on_hopper(on_a_card, monkeypatch):
    """The card is of that kind, with so many multiprocessors."""
    if hopper is None:
        pytest.skip("this Triton has no tensor descriptors")
    monkeypatch.setattr(substitute, "_hopper", lambda device: hopper)
    monkeypatch.setattr(hopper, "multiprocessors", lambda device: 4)


@pytest.mark.parametrize(
    ("n", "keys", "d", "heads_of"), [(100, 77, 64, 3), (64, 200, 32, 1), (130, 130, 128, 2), (200, 300, 16, 9)]
)
def test_attention(on_hopper, n, keys, d, heads_of):
    torch.manual_seed(0)
    q, k, v = (heads(2, rows, heads_of, d, extra=32) for rows in (n, keys, keys))
    out = hopper.attention(q, k, v)
    assert error(out, F.scaled_dot_product_attention(q.float(), k.float(), v.float())) < DIGIT
    assert out.transpose(1, 2).is_contiguous()


def test_attention_of_large_scores_is_no_nan(on_hopper):
    q = torch.full((1, 1, 80, 16), 200.0).half()
    assert torch.equal(hopper.attention(q, q, q), q)


@pytest.mark.parametrize(("tokens", "channels", "hidden"), [(100, 40, 24), (300, 64, 128), (2100, 72, 64)])
def test_geglu(on_hopper, tokens, channels, hidden):
    torch.manual_seed(0)
    x, bias = torch.randn(2, tokens // 2, channels).half(), torch.randn(2 * hidden).half()
    weight = (torch.randn(2 * hidden, channels) * channels**-0.5).half()
    value, gate = F.linear(x.float(), weight.float(), bias.float()).chunk(2, -1)
    out = hopper.geglu(x, weight, bias)
    assert error(out, value * F.gelu(gate)) < DIGIT
    assert out.shape == (2, tokens // 2, hidden)


def test_geglu_of_large_gates_is_no_nan(on_hopper):
    x, bias = torch.zeros(64, 32).half(), torch.tensor([2.0, 2.0, 60000.0, -60000.0]).repeat_interleave(8).half()
    out = hopper.geglu(x, torch.zeros(32, 32).half(), bias)
    assert torch.isinf(out[:, :8]).all()  # as torch's: half precision ends at 65504
    assert not out[:, 8:].any()


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
    """Traced blocks take the kernels, though there is no card; those for one kind of card they don't."""
    monkeypatch.setattr(substitute, "_is_on_a_card", lambda tensor: True)
    monkeypatch.setattr(substitute, "_hopper", lambda device: None)


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
        q, k, v = (t.unflatten(-1, (1, -1)).transpose(1, 2) for t in (a.to_q(x), a.to_k(context), a.to_v(context)))
        return a.to_out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


@torch.no_grad()
def test_a_traced_block_takes_them(block, given, on_a_card, monkeypatch):
    for attention in (m for m in block.modules() if hasattr(m, "to_q")):
        monkeypatch.setattr(attention, "forward", Sdpa(attention))
    expected = block(*given).float()

    def call(*tensors):
        with substitute.kernels_substituted(block, tensors):
            return block(*tensors)

    found = operations(call, *given)
    depth = len(block.transformer_blocks)
    assert found.count("sdxl_optim.group_statistics.default") == 1
    assert found.count("sdxl_optim.short_attention.default") == 2 * depth  # its own few tokens as well
    assert error(call(*given), expected) < 5 * DIGIT
    assert not any("forward" in vars(m) and not isinstance(vars(m)["forward"], Sdpa) for m in block.modules())


@torch.no_grad()
def test_on_hopper_a_traced_block_gates_by_them_as_well(block, given, on_hopper):
    expected = block(*given).float()

    def call(*tensors):
        with substitute.kernels_substituted(block, tensors):
            return block(*tensors)

    found = operations(call, *given)
    assert found.count("sdxl_optim.geglu.default") == len(block.transformer_blocks)
    assert error(call(*given), expected) < 5 * DIGIT
    assert not any("forward" in vars(m) for m in block.modules())


@torch.no_grad()
def test_attention_is_taken_by_size(on_hopper):
    def taken(n: int, heads_of: int = 2, **more) -> bool:
        def function(q, k, v):
            with substitute.kernels_substituted(torch.nn.Identity(), (q, k, v)):
                return F.scaled_dot_product_attention(q, k, v, **more)

        given = (heads(1, n, heads_of, 16) for _ in range(3))
        return "sdxl_optim.attention.default" in operations(function, *given)

    assert taken(200)
    assert not taken(200, is_causal=True)
    assert not taken(200, heads_of=6)  # more waves than pay off
    assert not taken(2100, heads_of=1)


@torch.no_grad()
def test_what_they_do_not_take_is_left_alone(on_a_card):
    q, k, v = (heads(1, 200, 2, 16) for _ in range(3))
    mask = torch.zeros(200, 20).half()
    few = k[:, :, :20], v[:, :, :20]

    def call(**more):
        def function(q, k, v):
            with substitute.kernels_substituted(torch.nn.Identity(), (q, k, v)):
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
        with substitute.kernels_substituted(block, tensors):
            return block(*tensors)

    assert not any("sdxl_optim" in name for name in operations(call, *given))
