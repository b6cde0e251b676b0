"""What a UNet of the ldm/sgm layout looks like: SD 1.x, 2.x, SDXL and its refiner.

Such a UNet runs `input_blocks`, `middle_block` and `output_blocks` in order; output block i is given the features
so far and, concatenated behind them on dim 1, what input block -(i+1) had put out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from sdxl_optim.errors import Unsupported
from sdxl_optim.wording import message


@dataclass(frozen=True)
class Layout:
    """A UNet's blocks and widths.

    blocks: all blocks in the order in which they run. depth: number of input blocks (as many as output blocks).
    channels: what each of `blocks` puts out. stages: for each output block, its resolution counted from the deepest
    one. by_layers: the UNet calls the layers in its blocks itself, and never a block.
    """

    unet: nn.Module
    blocks: tuple[nn.Module, ...]
    depth: int
    channels: tuple[int, ...]
    stages: tuple[int, ...]
    by_layers: bool = False

    def called(self, block: nn.Module) -> list[nn.Module]:
        """What the UNet calls to run one of its blocks, in order."""
        return list(block.children()) if self.by_layers else [block]

    @property
    def output_blocks(self) -> tuple[nn.Module, ...]:
        return self.blocks[self.depth + 1 :]

    def skip_channels(self, i: int) -> int:
        """Width of the skip connection that output block i is given behind its features."""
        return self.channels[self.depth - 1 - i]


def read_layout(unet: Any, by_layers: bool = False) -> Layout:
    """The layout of `unet`. Raises Unsupported where it has other parts than the ldm/sgm UNets."""
    try:
        inputs, middle, outputs = list(unet.input_blocks), unet.middle_block, list(unet.output_blocks)
    except AttributeError:
        raise Unsupported(
            "UNet", message("{name} has no input, middle and output blocks", name=type(unet).__name__)
        ) from None
    if len(inputs) != len(outputs):
        text = "{name} has {inputs} input and {outputs} output blocks"
        name = type(unet).__name__
        raise Unsupported("UNet", message(text, name=name, inputs=len(inputs), outputs=len(outputs)))
    blocks = (*inputs, middle, *outputs)
    return Layout(unet, blocks, len(inputs), tuple(map(_out_channels, blocks)), _stages(outputs), by_layers)


def _out_channels(block: nn.Module) -> int:
    """Width of a block's output: that of its last layer which changes the width (attention keeps it)."""
    for layer in reversed(list(block.children())):
        width = getattr(layer, "out_channels", None)
        if isinstance(width, int):
            return width
    layers = [type(layer).__name__ for layer in block.children()]
    raise Unsupported("UNet", message("a block of {layers} tells no width", layers=layers))


def _stages(outputs: list[nn.Module]) -> tuple[int, ...]:
    """An output block belongs to the resolution of its features; a block that ends with an upsampler ends its stage."""
    stages, stage = [], 0
    for block in outputs:
        stages.append(stage)
        stage += any(type(layer).__name__ == "Upsample" for layer in block.children())
    return tuple(stages)
