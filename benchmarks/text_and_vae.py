"""Text encoders and a VAE decoder of SDXL's sizes, in layouts of our own."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class Res(nn.Module):
    def __init__(self, before: int, after: int):
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(32, before), nn.Conv2d(before, after, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(32, after), nn.Conv2d(after, after, 3, padding=1)
        self.skip = nn.Conv2d(before, after, 1) if before != after else nn.Identity()

    def forward(self, x):
        h = self.conv1(F.silu(self.norm1(x)))
        return self.skip(x) + self.conv2(F.silu(self.norm2(h)))


class Attention(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.GroupNorm(32, width)
        self.qkv, self.out = nn.Conv2d(width, 3 * width, 1), nn.Conv2d(width, width, 1)

    def forward(self, x):
        q, k, v = (t.flatten(2).transpose(1, 2)[:, None].contiguous() for t in self.qkv(self.norm(x)).chunk(3, 1))
        h = F.scaled_dot_product_attention(q, k, v)
        return x + self.out(h[:, 0].transpose(1, 2).reshape(x.shape))


class Decoder(nn.Module):
    """The layout of SDXL's VAE decoder: 4 latent channels → 3 colours, 8 times as high and wide."""

    def __init__(self, width: int):
        super().__init__()
        top = 4 * width
        self.conv_in = nn.Conv2d(4, top, 3, padding=1)
        self.mid = nn.Sequential(Res(top, top), Attention(top), Res(top, top))
        levels, before = [], top
        for i, factor in enumerate((4, 4, 2, 1)):
            blocks = [Res(before if k == 0 else factor * width, factor * width) for k in range(3)]
            before = factor * width
            if i < 3:
                blocks += [nn.Upsample(scale_factor=2), nn.Conv2d(before, before, 3, padding=1)]
            levels.append(nn.Sequential(*blocks))
        self.up = nn.ModuleList(levels)
        self.norm_out, self.conv_out = nn.GroupNorm(32, before), nn.Conv2d(before, 3, 3, padding=1)

    def forward(self, z):
        h = self.mid(self.conv_in(z))
        for level in self.up:
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(h)))


class Autoencoder(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.encoder = nn.Conv2d(3, 8, 8, stride=8)
        self.decoder = Decoder(width)


class Text(nn.Module):
    def __init__(self, sizes, words: int):
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(words, width) for width, _ in sizes)
        self.towers = nn.ModuleList(
            nn.ModuleList(nn.TransformerEncoderLayer(w, max(w // 64, 1), 4 * w, batch_first=True) for _ in range(depth))
            for w, depth in sizes
        )

    def forward(self, tokens):
        results = []
        for table, tower in zip(self.tables, self.towers, strict=True):
            x = table(tokens)
            for layer in tower:
                x = layer(x)
            results.append(x)
        return torch.cat(results, -1)


def sdp(self, x, context=None):
    """CrossAttention.forward by torch's own kernels, as the WebUI runs with --opt-sdp-attention."""
    context = x if context is None else context
    qkv = self.to_q(x), self.to_k(context), self.to_v(context)
    q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in qkv)
    return self.to_out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
