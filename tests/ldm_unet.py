"""A UNet of the ldm/sgm layout for the tests, and the same weights as a diffusers `UNet2DConditionModel`.

Its parts, state-dict names and block loop are those of SD 1.x, 2.x, SDXL and its refiner, at any width.

Only forward calls are served: no dropout, checkpointing or training.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.nn import functional as F


def cat(tensors, dim=0):
    """`torch.cat` that brings the first of two tensors to the second one's size, as A1111 makes it."""
    if len(tensors) == 2 and tensors[0].shape[-2:] != tensors[1].shape[-2:]:
        first = F.interpolate(tensors[0], tensors[1].shape[-2:], mode="nearest")
        tensors = (first, tensors[1])
    return torch.cat(tensors, dim)


@dataclass(frozen=True)
class Config:
    """channels: width of the first level; mult: factor of each level.

    depths: transformer layers of each level, 0 for none; middle_depth: those of the middle block.
    heads: number of attention heads, or None for heads of head_channels each.
    y_channels: width of the vector `y`, None for models without. groups: of the group norms.
    """

    channels: int
    mult: tuple[int, ...]
    depths: tuple[int, ...]
    middle_depth: int
    context: int
    heads: int | None = None
    head_channels: int | None = None
    linear: bool = True
    y_channels: int | None = None
    groups: int = 32
    in_channels: int = 4
    out_channels: int = 4
    res_blocks: int = 2

    def n_heads(self, channels: int) -> int:
        return self.heads or channels // self.head_channels

    def tiny(self, layers: int = 1) -> Config:
        """The same blocks at widths that a CPU runs in milliseconds, with at most so many transformer layers each."""
        return replace(
            self,
            channels=16,
            depths=tuple(min(layers, depth) for depth in self.depths),
            middle_depth=min(layers, self.middle_depth),
            context=24,
            heads=2 if self.heads else None,
            head_channels=8 if self.head_channels else None,
            y_channels=None if self.y_channels is None else 16 + 6 * 8,
            groups=8,
        )


SDXL = Config(320, (1, 2, 4), (0, 2, 10), 10, 2048, head_channels=64, y_channels=1280 + 6 * 256)
REFINER = Config(384, (1, 2, 4, 4), (0, 4, 4, 0), 4, 1280, head_channels=64, y_channels=1280 + 5 * 256)
SD15 = Config(320, (1, 2, 4, 4), (1, 1, 1, 0), 1, 768, heads=8, linear=False)
SD21 = replace(SD15, context=1024, heads=None, head_channels=64, linear=True)
CONFIGS = {"sdxl": SDXL, "refiner": REFINER, "sd15": SD15, "sd21": SD21}


def timestep_embedding(timesteps: torch.Tensor, dim: int) -> torch.Tensor:
    """Sinusoidal embedding, cosines first. timesteps: [B]; returns [B, dim]."""
    half = dim // 2
    powers = torch.arange(half, dtype=torch.float32, device=timesteps.device) / half
    freqs = torch.exp(-math.log(10000) * powers)
    angles = timesteps[:, None].float() * freqs[None]
    return torch.cat([angles.cos(), angles.sin()], -1)


class TimestepEmbedSequential(nn.Sequential):
    def forward(self, x, emb, context=None):
        for layer in self:
            if isinstance(layer, ResBlock):
                x = layer(x, emb)
            elif isinstance(layer, SpatialTransformer):
                x = layer(x, context)
            else:
                x = layer(x)
        return x


class Downsample(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.channels = self.out_channels = channels
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x):
        return self.op(x)


class Upsample(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.channels = self.out_channels = channels
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x):
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class ResBlock(nn.Module):
    def __init__(self, channels: int, emb_channels: int, out_channels: int, groups: int):
        super().__init__()
        self.channels, self.out_channels = channels, out_channels
        conv = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.in_layers = nn.Sequential(nn.GroupNorm(groups, channels), nn.SiLU(), conv)
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb_channels, out_channels))
        conv = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.out_layers = nn.Sequential(nn.GroupNorm(groups, out_channels), nn.SiLU(), nn.Identity(), conv)
        same = channels == out_channels
        self.skip_connection = nn.Identity() if same else nn.Conv2d(channels, out_channels, 1)

    def forward(self, x, emb):
        h = self.in_layers(x) + self.emb_layers(emb)[:, :, None, None]
        return self.skip_connection(x) + self.out_layers(h)


class CrossAttention(nn.Module):
    def __init__(self, channels: int, context: int, heads: int):
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(context, channels, bias=False)
        self.to_v = nn.Linear(context, channels, bias=False)
        self.to_out = nn.Sequential(nn.Linear(channels, channels), nn.Identity())

    def forward(self, x, context=None):
        context = x if context is None else context
        qkv = self.to_q(x), self.to_k(context), self.to_v(context)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in qkv)
        weights = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1)
        return self.to_out((weights @ v).transpose(1, 2).flatten(2))


class GEGLU(nn.Module):
    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.proj = nn.Linear(channels, 2 * hidden)

    def forward(self, x):
        x, gate = self.proj(x).chunk(2, -1)
        return x * F.gelu(gate)


class FeedForward(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.net = nn.Sequential(GEGLU(channels, 4 * channels), nn.Identity(), nn.Linear(4 * channels, channels))

    def forward(self, x):
        return self.net(x)


class BasicTransformerBlock(nn.Module):
    def __init__(self, channels: int, context: int, heads: int):
        super().__init__()
        self.attn1 = CrossAttention(channels, channels, heads)
        self.ff = FeedForward(channels)
        self.attn2 = CrossAttention(channels, context, heads)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(channels) for _ in range(3))

    def forward(self, x, context):
        x = self.attn1(self.norm1(x)) + x
        x = self.attn2(self.norm2(x), context) + x
        return self.ff(self.norm3(x)) + x


class SpatialTransformer(nn.Module):
    def __init__(self, channels: int, depth: int, config: Config):
        super().__init__()
        self.in_channels, self.use_linear = channels, config.linear
        self.norm = nn.GroupNorm(config.groups, channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, channels) if config.linear else nn.Conv2d(channels, channels, 1)
        heads = config.n_heads(channels)
        self.transformer_blocks = nn.ModuleList(
            BasicTransformerBlock(channels, config.context, heads) for _ in range(depth)
        )
        self.proj_out = nn.Linear(channels, channels) if config.linear else nn.Conv2d(channels, channels, 1)

    def forward(self, x, context=None):
        size = x.shape[-2:]
        h = self.norm(x)
        h = h if self.use_linear else self.proj_in(h)
        h = h.flatten(2).transpose(1, 2)
        h = self.proj_in(h) if self.use_linear else h
        for block in self.transformer_blocks:
            h = block(h, context)
        h = self.proj_out(h) if self.use_linear else h
        h = h.transpose(1, 2).unflatten(2, size)
        return x + (h if self.use_linear else self.proj_out(h))


class UNetModel(nn.Module):
    """x: [B, in_channels, H, W], timesteps: [B], context: [B, T, context], y: [B, y_channels].

    Without y it is ldm's for SD 1 and 2, which brings x to its `dtype`: fp32, whatever its weights are.
    """

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        if config.y_channels is None:
            self.dtype = torch.float32
        self.model_channels = config.channels
        emb = 4 * config.channels
        self.time_embed = nn.Sequential(nn.Linear(config.channels, emb), nn.SiLU(), nn.Linear(emb, emb))
        if config.y_channels is not None:
            label = nn.Sequential(nn.Linear(config.y_channels, emb), nn.SiLU(), nn.Linear(emb, emb))
            self.label_emb = nn.Sequential(label)

        def res(before: int, after: int) -> ResBlock:
            return ResBlock(before, emb, after, config.groups)

        ch = config.channels
        inputs = [TimestepEmbedSequential(nn.Conv2d(config.in_channels, ch, 3, padding=1))]
        widths = [ch]
        last = len(config.mult) - 1
        for level, (mult, depth) in enumerate(zip(config.mult, config.depths, strict=True)):
            for _ in range(config.res_blocks):
                layers: list[nn.Module] = [res(ch, mult * config.channels)]
                ch = mult * config.channels
                if depth:
                    layers.append(SpatialTransformer(ch, depth, config))
                inputs.append(TimestepEmbedSequential(*layers))
                widths.append(ch)
            if level != last:
                inputs.append(TimestepEmbedSequential(Downsample(ch)))
                widths.append(ch)
        self.input_blocks = nn.ModuleList(inputs)

        transformer = SpatialTransformer(ch, config.middle_depth, config)
        self.middle_block = TimestepEmbedSequential(res(ch, ch), transformer, res(ch, ch))

        outputs = []
        for level in reversed(range(len(config.mult))):
            for i in range(config.res_blocks + 1):
                layers = [res(ch + widths.pop(), config.mult[level] * config.channels)]
                ch = config.mult[level] * config.channels
                if config.depths[level]:
                    layers.append(SpatialTransformer(ch, config.depths[level], config))
                if level and i == config.res_blocks:
                    layers.append(Upsample(ch))
                outputs.append(TimestepEmbedSequential(*layers))
        self.output_blocks = nn.ModuleList(outputs)
        conv = nn.Conv2d(ch, config.out_channels, 3, padding=1)
        self.out = nn.Sequential(nn.GroupNorm(config.groups, ch), nn.SiLU(), conv)

    def embedding(self, timesteps, y=None):
        emb = self.time_embed(timestep_embedding(timesteps, self.model_channels))
        return emb if y is None else emb + self.label_emb(y)

    def forward(self, x, timesteps=None, context=None, y=None):
        emb = self.embedding(timesteps, y)
        h, hs = x.type(getattr(self, "dtype", x.dtype)), []
        for module in self.input_blocks:
            h = module(h, emb, context)
            hs.append(h)
        h = self.middle_block(h, emb, context)
        for module in self.output_blocks:
            h = cat([h, hs.pop()], 1)
            h = module(h, emb, context)
        return self.out(h.type(x.dtype))


def tiny_unet(name: str = "sdxl", seed: int = 0, layers: int = 1) -> UNetModel:
    """A tiny UNet of the named family with random weights, in eval mode."""
    torch.manual_seed(seed)
    return UNetModel(CONFIGS[name].tiny(layers)).eval().requires_grad_(False)


@dataclass
class Inputs:
    """One call's tensors. For SDXL's family y is [pooled | embedded time_ids]."""

    x: torch.Tensor
    timesteps: torch.Tensor
    context: torch.Tensor
    y: torch.Tensor | None
    pooled: torch.Tensor | None
    time_ids: torch.Tensor | None

    @property
    def args(self) -> tuple:
        return (self.x, self.timesteps, self.context, self.y)

    @property
    def diffusers_args(self) -> tuple:
        """Positional arguments of `UNet2DConditionModel`; added_cond_kwargs is in `diffusers_kwargs`."""
        return (self.x, self.timesteps[0], self.context)

    @property
    def diffusers_kwargs(self) -> dict:
        if self.y is None:
            return {}
        return {"added_cond_kwargs": {"text_embeds": self.pooled, "time_ids": self.time_ids}}


def random_inputs(
    config: Config, rows: int = 2, size=(16, 16), timestep: float = 500, tokens: int = 7, seed: int = 1
) -> Inputs:
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(*shape, generator=generator)

    x = randn(rows, config.in_channels, *size)
    context = randn(rows, tokens, config.context)
    timesteps = torch.full((rows,), float(timestep))
    if config.y_channels is None:
        return Inputs(x, timesteps, context, None, None, None)
    ids, dim = _time_ids(config)
    pooled = randn(rows, config.y_channels - ids * dim)
    time_ids = torch.randint(0, 1024, (rows, ids), generator=generator).float()
    embedded = timestep_embedding(time_ids.flatten(), dim).reshape(rows, -1)
    return Inputs(x, timesteps, context, torch.cat([pooled, embedded], 1), pooled, time_ids)


def _time_ids(config: Config) -> tuple[int, int]:
    """How many sizes and crops `y` tells, and the width of each one's embedding."""
    if config.y_channels == REFINER.y_channels:
        return 5, 256
    return 6, 256 if config.y_channels > 1000 else 8


# --- the same UNet in diffusers


def to_diffusers(unet: UNetModel):
    """A diffusers `UNet2DConditionModel` with the weights of `unet`."""
    from diffusers import UNet2DConditionModel

    config = unet.config
    widths = tuple(m * config.channels for m in config.mult)
    down = tuple("CrossAttnDownBlock2D" if d else "DownBlock2D" for d in config.depths)
    up = tuple("CrossAttnUpBlock2D" if d else "UpBlock2D" for d in reversed(config.depths))
    label = {}
    if config.y_channels is not None:
        label = {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": _time_ids(config)[1],
            "projection_class_embeddings_input_dim": config.y_channels,
        }
    model = UNet2DConditionModel(
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        down_block_types=down,
        up_block_types=up,
        block_out_channels=widths,
        layers_per_block=config.res_blocks,
        norm_num_groups=config.groups,
        cross_attention_dim=config.context,
        transformer_layers_per_block=_layers(config),
        attention_head_dim=tuple(config.n_heads(w) for w in widths),
        use_linear_projection=config.linear,
        **label,
    )
    weights = {_diffusers_name(name, config): tensor for name, tensor in unet.state_dict().items()}
    model.load_state_dict(weights, strict=True)
    return model.eval().requires_grad_(False)


def _layers(config: Config) -> tuple[int, ...]:
    """Transformer layers of each level as diffusers counts them: the last one is the middle block's too."""
    return (*(depth or 1 for depth in config.depths[:-1]), config.depths[-1] or config.middle_depth)


RES_NAMES = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
TOP_NAMES = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}


def _diffusers_name(name: str, config: Config) -> str:
    layer, _, tensor = name.rpartition(".")
    if layer in TOP_NAMES:
        return f"{TOP_NAMES[layer]}.{tensor}"
    part, _, rest = name.partition(".")
    if part == "middle_block":
        index, _, rest = rest.partition(".")
        if index == "1":
            return f"mid_block.attentions.0.{rest}"
        return f"mid_block.resnets.{int(index) // 2}.{_res_name(rest)}"
    block, index, rest = rest.split(".", 2)
    per_level = config.res_blocks + 1
    if part == "input_blocks":
        level, i = divmod(int(block) - 1, per_level)
        place = f"down_blocks.{level}"
        if i == config.res_blocks:
            return f"{place}.downsamplers.0.conv.{rest.removeprefix('op.')}"
    else:
        level, i = divmod(int(block), per_level)
        place = f"up_blocks.{level}"
    if rest.startswith("conv."):
        return f"{place}.upsamplers.0.{rest}"
    return f"{place}.resnets.{i}.{_res_name(rest)}" if index == "0" else f"{place}.attentions.{i}.{rest}"


def _res_name(rest: str) -> str:
    layer, _, tensor = rest.rpartition(".")
    return f"{RES_NAMES[layer]}.{tensor}"
