"""What a UNet looks like: stages and widths of the families at full size, and the refusals."""

from __future__ import annotations

from dataclasses import replace

import ldm_unet
import pytest
import torch
from torch import nn

from sdxl_optim.errors import Unsupported
from sdxl_optim.techniques.freeu.patch import freeu_stages
from sdxl_optim.unet.layout import read_layout


def full_width(name: str) -> ldm_unet.UNetModel:
    """The family's UNet at its real widths, with one transformer layer where there are many, on no device."""
    config = ldm_unet.CONFIGS[name]
    shallow = replace(config, depths=tuple(min(1, depth) for depth in config.depths), middle_depth=1)
    with torch.device("meta"):
        return ldm_unet.UNetModel(shallow)


@pytest.mark.parametrize(
    ("name", "skips", "stages"),
    [
        ("sdxl", [1280] * 2 + [640] * 3 + [320] * 4, [0] * 3 + [1] * 3 + [2] * 3),
        ("sd15", [1280] * 5 + [640] * 3 + [320] * 4, [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3),
        ("sd21", [1280] * 5 + [640] * 3 + [320] * 4, [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3),
        ("refiner", [1536] * 5 + [768] * 3 + [384] * 4, [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3),
    ],
)
def test_stages_and_skip_widths(name, skips, stages):
    layout = read_layout(full_width(name))
    assert layout.depth == len(skips)
    assert [layout.skip_channels(i) for i in range(layout.depth)] == skips
    assert list(layout.stages) == stages
    assert freeu_stages(layout) == 2


@pytest.mark.parametrize("name", ldm_unet.CONFIGS)
def test_widths_are_those_of_the_tensors(name):
    """Each block's output, and what each output block is given, seen by hooks in a real call."""
    unet = ldm_unet.tiny_unet(name)
    layout = read_layout(unet)
    put_out, given, heights = [], [], []
    for block in layout.blocks:
        block.register_forward_hook(lambda m, args, out: put_out.append(out.shape[1]))
    for block in layout.output_blocks:
        block.register_forward_pre_hook(lambda m, args: given.append(args[0].shape[1]))
        block.register_forward_pre_hook(lambda m, args: heights.append(args[0].shape[2]))
    unet(*ldm_unet.random_inputs(unet.config, size=(16, 16)).args)
    assert tuple(put_out) == layout.channels
    before = layout.channels[layout.depth :]
    assert given == [before[i] + layout.skip_channels(i) for i in range(layout.depth)]
    deepest = heights[0]
    assert [deepest * 2**stage for stage in layout.stages] == heights


def test_blocks_are_in_the_order_in_which_they_run():
    unet = ldm_unet.tiny_unet("sdxl")
    layout = read_layout(unet)
    ran = []
    for i, block in enumerate(layout.blocks):
        block.register_forward_hook(lambda m, args, out, i=i: ran.append(i))
    unet(*ldm_unet.random_inputs(unet.config).args)
    assert ran == list(range(2 * layout.depth + 1))
    assert layout.output_blocks == tuple(unet.output_blocks)


def test_a_unet_of_another_kind_is_refused_by_name():
    with pytest.raises(Unsupported, match=r"^UNet: Linear has no input, middle and output blocks$"):
        read_layout(nn.Linear(1, 1))


def test_blocks_without_a_partner_are_refused():
    unet = ldm_unet.tiny_unet("sdxl")
    del unet.output_blocks[-1]
    with pytest.raises(Unsupported, match=r"^UNet: UNetModel has 9 input and 8 output blocks$"):
        read_layout(unet)


def test_a_block_that_tells_no_width_is_refused():
    unet = ldm_unet.tiny_unet("sdxl")
    unet.middle_block = nn.Sequential(nn.SiLU())
    with pytest.raises(Unsupported, match=r"^UNet: a block of \['SiLU'\] tells no width$"):
        read_layout(unet)
