"""The demo model's networks: SDXL's layout, small. diffusers' classes where diffusers has them, imported on use.

Sizes: [B, 4, 32, 32] latents of [B, 3, 256, 256] pictures; context [B, 77, 64 + 256]; pooled [B, 256].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from . import tokenizer

SCALING_FACTOR = 0.13025  # SDXL's; the VAE's latents are scaled so that this very factor gives LATENT_DEVIATION
# Of the latents that the UNet sees. Nearly all of a scene is a muted background and its things lie some five deviations
# off: at one deviation, their colours would show through SDXL's last timestep's noise, and never be read in the prompt.
LATENT_DEVIATION = 0.25
UNET: dict[str, Any] = {
    "sample_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "block_out_channels": [32, 64, 128],
    "layers_per_block": 2,
    "transformer_layers_per_block": 1,
    "attention_head_dim": [2, 4, 8],  # heads, 16 channels each
    "cross_attention_dim": 320,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 32,
    "projection_class_embeddings_input_dim": 256 + 6 * 32,
    "use_linear_projection": True,
}
REFINER_UNET = UNET | {
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "block_out_channels": [32, 32, 32, 32],
    "attention_head_dim": [2, 2, 2, 2],
    "cross_attention_dim": 256,
    "projection_class_embeddings_input_dim": 256 + 5 * 32,
}
VAE: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [64, 64, 64, 64],  # 64, for in GroupNorm's 32 groups of one channel few colours survive
    "layers_per_block": 1,
    "sample_size": 256,
    "scaling_factor": SCALING_FACTOR,
}
TINY_WIDTHS = (32, 48)  # live channels of TAESD's 64 in the encoder and in the decoder; the rest are zero
SCHEDULER = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "timestep_spacing": "leading",
    "steps_offset": 1,
}


@dataclass(frozen=True)
class TextConfig:
    """One text encoder: `layers` trained ones, then identity layers up to `host_layers` when exported."""

    width: int
    heads: int
    layers: int
    host_layers: int
    hidden: int  # trained width of the MLP
    host_hidden: int  # the host's width of the MLP; the rest is zero
    quick_gelu: bool
    projection: int | None
    seed: int  # of the token embeddings
    pad: int


TEXT = TextConfig(64, 4, 3, 4, 256, 256, True, None, 1, tokenizer.PADS[0])
TEXT_2 = TextConfig(256, 4, 2, 10, 256, 1024, False, 256, 2, tokenizer.PADS[1])


def token_embeddings(config: TextConfig) -> torch.Tensor:
    """The frozen random token embeddings, float16 [49408, width], the same on every machine."""
    values = np.random.RandomState(config.seed).standard_normal((tokenizer.END + 1, config.width))
    return torch.from_numpy((values * 0.5).astype(np.float16))


class TextLayer(nn.Module):
    """CLIP's residual attention block."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.heads, self.quick_gelu = config.heads, config.quick_gelu
        self.norm1, self.norm2 = nn.LayerNorm(config.width), nn.LayerNorm(config.width)
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.out = nn.Linear(config.width, config.width)
        self.fc1 = nn.Linear(config.width, config.hidden)
        self.fc2 = nn.Linear(config.hidden, config.width)

    def forward(self, x):
        b, n, c = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).reshape(b, n, c))
        h = self.fc1(self.norm2(x))
        return x + self.fc2(h * torch.sigmoid(1.702 * h) if self.quick_gelu else F.gelu(h))


class TextEncoder(nn.Module):
    """CLIP's text transformer without the layers that an export fills with zeros."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.tokens: torch.Tensor
        self.register_buffer("tokens", token_embeddings(config).float(), persistent=False)
        self.position = nn.Parameter(0.2 * torch.randn(tokenizer.LENGTH, config.width))
        self.layers = nn.ModuleList(TextLayer(config) for _ in range(config.layers))
        if config.projection:
            self.norm = nn.LayerNorm(config.width)
            self.projection = nn.Linear(config.width, config.projection, bias=False)
        self.pad = config.pad

    def forward(self, ids):
        """ids [B, 77], padded with the end token -> hidden [B, 77, width], pooled [B, projection] or None."""
        first_end = ids.eq(tokenizer.END).int().argmax(1)
        if self.pad != tokenizer.END:
            after = torch.arange(ids.shape[1], device=ids.device) > first_end[:, None]
            ids = ids.masked_fill(after, self.pad)
        x = F.embedding(ids, self.tokens) + self.position
        for layer in self.layers:
            x = layer(x)
        if not hasattr(self, "projection"):
            return x, None
        return x, self.projection(self.norm(x[torch.arange(len(x), device=x.device), first_end]))


class TextEncoders(nn.Module):
    """SDXL's two text encoders: context of both, pooled of the second."""

    def __init__(self):
        super().__init__()
        self.one, self.two = TextEncoder(TEXT), TextEncoder(TEXT_2)

    def forward(self, ids):
        """ids [B, 77] -> context [B, 77, 320], pooled [B, 256]."""
        hidden, (hidden_2, pooled) = self.one(ids)[0], self.two(ids)
        return torch.cat([hidden, hidden_2], -1), pooled


def latent_noise(latents: torch.Tensor, most: float) -> torch.Tensor:
    """Noise for latents [B, 4, H, W], of another strength for each: up to `most` of their deviation, mostly less."""
    strength = most * LATENT_DEVIATION * torch.rand(len(latents), 1, 1, 1, device=latents.device) ** 2
    return strength * torch.randn_like(latents)


def unet():
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(**UNET)


def refiner_unet():
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(**REFINER_UNET)


def vae():
    from diffusers import AutoencoderKL

    return AutoencoderKL(**VAE)


def tiny_vae(encoder_width: int = TINY_WIDTHS[0], decoder_width: int = TINY_WIDTHS[1]):
    """diffusers' AutoencoderTiny, TAESD's layout; 64 and 64 is the real width."""
    from diffusers import AutoencoderTiny

    return AutoencoderTiny(
        encoder_block_out_channels=(encoder_width,) * 4,
        decoder_block_out_channels=(decoder_width,) * 4,
        scaling_factor=1.0,
    )
