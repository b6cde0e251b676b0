"""The caption check: a small classifier that says whether a picture holds what its caption names.

The classifier looks at each cell of a 3 by 3 grid: is a thing there, and of which shape, colour, texture and size.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from .captions import Named, parse
from .data import CELLS, COLOURS, SHAPES, SIZE, SIZES, TEXTURES

GROUPS = {
    "present": 1,
    "shape": len(SHAPES),
    "colour": len(COLOURS),
    "texture": len(TEXTURES),
    "size": len(SIZES),
}
WORDS = {"shape": SHAPES, "colour": COLOURS, "texture": TEXTURES, "size": SIZES}


class Classifier(nn.Module):
    """[B, 3, 256, 256], 0 to 1 -> logits [B, 9, sum(GROUPS)]."""

    def __init__(self, widths: tuple[int, ...] = (16, 32, 64, 96)):
        super().__init__()
        layers, before = [], 3
        for width in widths:
            layers += [nn.Conv2d(before, width, 3, 2, 1), nn.GroupNorm(8, width), nn.ReLU()]
            layers += [nn.Conv2d(width, width, 3, 1, 1), nn.GroupNorm(8, width), nn.ReLU()]
            before = width
        self.features = nn.Sequential(*layers)
        self.cells = nn.Sequential(nn.Linear(2 * before, 96), nn.ReLU(), nn.Linear(96, sum(GROUPS.values())))

    def forward(self, pictures):
        x = self.features(pictures * 2 - 1)
        # 16 features a side: three overlapping windows of 6, which hold the cells whole
        windows = x.unfold(2, 6, 5).unfold(3, 6, 5).flatten(4)
        pooled = torch.cat([windows.amax(-1), windows.mean(-1)], 1)
        return self.cells(pooled.permute(0, 2, 3, 1).flatten(1, 2))


@dataclass(frozen=True)
class Seen:
    """What the classifier sees in one cell."""

    cell: int
    shape: str
    colour: str
    texture: str
    size: str

    def is_named(self, named: Named) -> bool:
        """Shape, colour and place as named; size and texture are reported, not judged."""
        return self.shape == named.shape and named.colour in (None, self.colour) and named.cell in (None, self.cell)


@dataclass(frozen=True)
class Verdict:
    passed: bool
    seen: tuple[Seen, ...]
    missing: tuple[Named, ...]

    def __str__(self) -> str:
        things = ", ".join(f"{s.size} {s.texture} {s.colour} {s.shape} ({CELLS[s.cell]})" for s in self.seen)
        return f"{'pass' if self.passed else 'fail'}: {things or 'nothing'}"


def see(logits: torch.Tensor) -> tuple[Seen, ...]:
    """Logits of one picture [9, n] -> the things in it; shape and colour must each be likelier than not."""
    parts = dict(zip(GROUPS, logits.float().split(list(GROUPS.values()), -1), strict=True))
    seen = []
    for cell in range(9):
        best = {name: parts[name][cell].softmax(-1).max(-1) for name in WORDS}
        if parts["present"][cell] > 0 and best["shape"].values > 0.5 and best["colour"].values > 0.5:
            seen.append(Seen(cell, **{name: WORDS[name][int(best[name].indices)] for name in WORDS}))
    return tuple(seen)


def judge(seen: tuple[Seen, ...], named: tuple[Named, ...]) -> Verdict:
    """Match each named thing with a thing of its own, the most exactly named first."""
    left, missing = list(seen), []
    for thing in sorted(named, key=lambda n: (n.cell is None, n.colour is None)):
        match = next((s for s in left if s.is_named(thing)), None)
        if match:
            left.remove(match)
        else:
            missing.append(thing)
    return Verdict(not missing, seen, tuple(missing))


def to_tensor(image) -> torch.Tensor:
    """A PIL image, or an array or tensor [H, W, 3] (0..255) or [3, H, W] (0..1) -> [1, 3, 256, 256], 0 to 1."""
    if isinstance(image, torch.Tensor) and image.shape[0] == 3:
        pixels = image.float()
    else:
        array = np.asarray(image.convert("RGB") if hasattr(image, "convert") else image)
        pixels = torch.from_numpy(array.astype(np.float32) / 255).permute(2, 0, 1)
    if pixels.shape[-2:] != (SIZE, SIZE):
        pixels = F.interpolate(pixels[None], (SIZE, SIZE), mode="bilinear", antialias=True)[0]
    return pixels[None].clamp(0, 1)


@cache
def _classifier() -> Classifier:
    from safetensors.torch import load_file

    model = Classifier()
    weights = load_file(Path(__file__).with_name("weights") / "classifier.safetensors")
    model.load_state_dict({k: v.float() for k, v in weights.items()})
    return model.eval()


@torch.no_grad()
def caption_check(image, prompt: str) -> Verdict:
    """Whether every thing that `prompt` names is in `image`, with its shape, colour and place.

    `image` is as `to_tensor` takes it. Raises ValueError for a prompt that names nothing (see `captions.parse`).
    """
    named, _ = parse(prompt)
    return judge(see(_classifier()(to_tensor(image))[0]), named)
