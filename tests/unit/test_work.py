"""The estimate of a cached call's arithmetic against torch's own count of it."""

import pytest
import torch
from host_loop import DeepCacheCalls
from ldm_unet import CONFIGS, random_inputs, tiny_unet
from torch.utils.flop_counter import FlopCounterMode

from sdxl_optim.unet.layout import read_layout
from sdxl_optim.unet.work import cached_share


def flops(unet, inputs) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        unet(*inputs)
    return counter.get_total_flops()


@pytest.mark.parametrize("name", ["sdxl", "sd15"])
@pytest.mark.parametrize("branch", [0, 2, 5, 8])
def test_it_is_what_torch_counts(name, branch):
    unet = tiny_unet(name)
    inputs = random_inputs(CONFIGS[name].tiny(), size=(32, 32), tokens=77).args
    x = inputs[0]
    layout = read_layout(unet)
    with DeepCacheCalls(layout, branch) as calls:
        calls.begin(False, len(x), len(x))
        full = flops(unet, inputs)
        assert calls.begin(True, len(x), len(x))
        cached = flops(unet, inputs)
    assert cached_share(layout, branch, *x.shape[2:]) == pytest.approx(cached / full, rel=0.1, abs=0.01)


def test_a_deeper_branch_leaves_more():
    layout = read_layout(tiny_unet("sdxl"))
    shares = [cached_share(layout, branch, 128, 128) for branch in range(layout.depth)]
    assert shares == sorted(shares)
    assert 0 < shares[0] < shares[-1] < 1
