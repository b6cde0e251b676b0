"""FreeU's two tensor functions (arXiv:2309.11497, section 3.2)."""

from __future__ import annotations

import math

import torch


def scale_backbone(h: torch.Tensor, b: float, version: int = 1) -> torch.Tensor:
    """Amplify the first half of the backbone's channels.

    h: [B, C, H, W]. Version 1 multiplies by b. Version 2 multiplies by (b - 1) * m + 1, where m is the mean over all
    channels, brought to 0…1 within each picture (equation 4). Returns a new [B, C // 2, H, W] tensor of h's dtype.
    """
    half = h[:, : h.shape[1] // 2]
    if version == 1:
        return half * b
    mean = h.float().mean(1, keepdim=True)
    low, high = mean.amin((2, 3), keepdim=True), mean.amax((2, 3), keepdim=True)
    strength = (mean - low) / (high - low).clamp_min(torch.finfo(torch.float32).tiny)
    return half * ((b - 1) * strength + 1).to(h.dtype)


def scale_low_frequencies(x: torch.Tensor, s: float) -> torch.Tensor:
    """Multiply x's lowest frequencies by s: the Fourier filter with threshold 1 (equations 5 to 7).

    x: [B, C, H, W]; returns the same shape and dtype. The filter's mask covers the frequencies -1 and 0 of each
    axis, four of all, so the transform is written out for these: a product with seven waves and one back. That is
    the same filter in fp32 at a fraction of the traffic of a full FFT, for every size and on devices without
    complex numbers. It takes no part in autograd.
    """
    batch, channels, height, width = x.shape
    waves = _waves(height, width, x.device)
    flat = x.reshape(batch * channels, height * width).float()
    # Autocast turns products into half precision, where these sums over a picture overflow, but for those with `out`.
    low = torch.mm(flat, waves, out=flat.new_empty(len(flat), waves.shape[1]))
    filtered = torch.addmm(flat, low, waves.T, alpha=(s - 1) / (height * width), out=torch.empty_like(flat))
    return filtered.reshape(x.shape).to(x.dtype)


def _waves(height: int, width: int, device: torch.device) -> torch.Tensor:
    """[H*W, 1 to 7]: the constant wave, then cosine and sine of the other frequencies under the mask."""
    y = torch.arange(height, device=device, dtype=torch.float32) * (2 * math.pi / height)
    x = torch.arange(width, device=device, dtype=torch.float32) * (2 * math.pi / width)
    rows = [torch.ones(height * width, device=device)]
    for fy, fx in ((0, 1), (1, 0), (1, 1)):
        if (fy and height == 1) or (fx and width == 1):  # a single row or column has no such frequency
            continue
        angle = (fy * y[:, None] + fx * x[None, :]).flatten()
        rows += [angle.cos(), angle.sin()]
    return torch.stack(rows, 1)
