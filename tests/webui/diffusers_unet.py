"""The tiny checkpoints' UNets as diffusers models, converted by diffusers itself."""

from pathlib import Path

import torch
from diffusers import UNet2DConditionModel


def diffusers_unet(checkpoint: Path) -> UNet2DConditionModel:
    """The UNet of `checkpoint` (a .safetensors with its YAML beside it) in fp32."""
    config = str(checkpoint.with_suffix(".yaml"))
    unet = UNet2DConditionModel.from_single_file(str(checkpoint), original_config=config)
    return unet.to(dtype=torch.float32).eval()


@torch.no_grad()
def call(unet: UNet2DConditionModel, inputs: dict) -> torch.Tensor:
    """Run `unet` on one call as the probe recorded it: `x`, `timesteps`, `context` and, for SDXL, `y`.

    diffusers takes SDXL's vector as `class_labels` where the context is not as wide as the full-size model's.
    """
    return unet(inputs["x"], inputs["timesteps"], inputs["context"], class_labels=inputs.get("y")).sample
