"""The demo model's pictures: coloured shapes on a background, sampled by seed and rendered by code.

A `Scene` is what a picture holds in words; `rasterise` turns it into a row of numbers (where, how large, which colour
exactly) and `render` turns rows into pictures with signed distance functions, on whatever device the rows are.
"""

from __future__ import annotations

import hashlib
import math
import random
from dataclasses import dataclass

import numpy as np
import torch

SIZE = 256
SHAPES = ("circle", "square", "triangle", "star", "ring", "cross", "heart")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "white", "black")
TEXTURES = ("plain", "striped", "dotted", "checkered")
SIZES = ("small", "medium", "large")
CELLS = ("top left", "top", "top right", "left", "centre", "right", "bottom left", "bottom", "bottom right")
BACKGROUNDS = (*COLOURS, "gray")

RGB = {
    "red": (214, 36, 40),
    "orange": (245, 138, 22),
    "yellow": (250, 222, 54),
    "green": (38, 158, 66),
    "blue": (36, 84, 214),
    "purple": (142, 58, 184),
    "white": (246, 246, 246),
    "black": (24, 24, 28),
    "gray": (128, 128, 128),
}
RADIUS = {"small": 25.0, "medium": 34.0, "large": 43.0}  # pixels of 256
CENTRES = (52.0, 128.0, 204.0)  # of the three columns and rows, pixels of 256
MAX_THINGS = 3
BACKGROUND_FIELDS, THING_FIELDS = 8, 15
ROW = BACKGROUND_FIELDS + MAX_THINGS * THING_FIELDS


@dataclass(frozen=True)
class Thing:
    shape: str
    colour: str
    cell: int  # index into CELLS
    size: str = "medium"
    texture: str = "plain"

    @property
    def column(self) -> int:
        return self.cell % 3

    @property
    def row(self) -> int:
        return self.cell // 3


@dataclass(frozen=True)
class Scene:
    things: tuple[Thing, ...]
    background: str = "gray"
    gradient: bool = False
    counted: bool = False  # equal things in a row or a column, told as "three red circles in a row"


def pick(rng: random.Random, items):
    """One of `items`. Uses `random()` alone, whose stream Python guarantees."""
    return items[int(rng.random() * len(items))]


def key(things) -> str:
    """The combination of shapes, colours and places, whatever their order: what is withheld from training."""
    return "; ".join(sorted(f"{t.shape} {t.colour} {t.cell}" for t in things))


def is_held(things) -> bool:
    """True for the one combination in sixteen that training never sees (by hash, so that it never moves)."""
    return hashlib.sha256(key(things).encode()).digest()[0] % 16 == 0


def sample_scene(rng: random.Random, held: bool | None = False) -> Scene:
    """A random scene; `held` says from which side of the split (None: from both)."""
    while True:
        scene = _sample(rng)
        if held is None or is_held(scene.things) == held:
            return scene


def _sample(rng: random.Random) -> Scene:
    background = pick(rng, BACKGROUNDS)
    gradient = rng.random() < 0.4
    kind = rng.random()
    if kind < 0.10:
        return Scene(_counted(rng, background), background, gradient, counted=True)
    cells = [int(rng.random() * 9)]
    if kind > 0.45:  # two things, at least two columns or two rows apart
        far = [c for c in range(9) if max(abs(c % 3 - cells[0] % 3), abs(c // 3 - cells[0] // 3)) == 2]
        if far:
            cells.append(pick(rng, far))
    things = tuple(
        Thing(pick(rng, SHAPES), _colour(rng, background), cell, pick(rng, SIZES), _texture(rng)) for cell in cells
    )
    return Scene(things, background, gradient)


def sample_dense(rng: random.Random) -> Scene:
    """A scene with three things in any places, of which two may touch: for the VAE, which needs no words."""
    background = pick(rng, BACKGROUNDS)
    things = tuple(
        Thing(pick(rng, SHAPES), _colour(rng, background), cell, pick(rng, SIZES), _texture(rng))
        for cell in rng.sample(range(9), MAX_THINGS)
    )
    return Scene(things, background, rng.random() < 0.4)


def _counted(rng: random.Random, background: str) -> tuple[Thing, ...]:
    cells = pick(rng, ((3, 5), (1, 7), (3, 4, 5), (1, 4, 7)))
    sizes = SIZES if len(cells) == 2 else SIZES[:2]
    shape, colour, size, texture = (
        pick(rng, SHAPES),
        _colour(rng, background),
        pick(rng, sizes),
        _texture(rng),
    )
    return tuple(Thing(shape, colour, cell, size, texture) for cell in cells)


def _colour(rng: random.Random, background: str) -> str:
    return pick(rng, [c for c in COLOURS if c != background])


def _texture(rng: random.Random) -> str:
    return "plain" if rng.random() < 0.4 else pick(rng, TEXTURES[1:])


def rasterise(scene: Scene, rng: random.Random, vary: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """The numbers `render` draws from, float32 [ROW], and SDXL's micro-conditioning, float32 [6].

    With `vary`, one picture in six is blurred as if it had been enlarged from a smaller original, one in ten is cropped
    away from the top left corner, and one in ten is said to be of another size: what SDXL's original size, crop and
    target size are about. (Heights before widths, as SDXL has them.)
    """
    height = width = float(SIZE)
    if vary and rng.random() < 0.1:
        height, width = (float(int(192 + rng.random() * 832)) for _ in range(2))
    shrink = 0.35 + 0.5 * rng.random() if vary and rng.random() < 0.16 else 1.0
    top, left = (float(int(rng.random() * 32)) for _ in range(2)) if vary and rng.random() < 0.1 else (0.0, 0.0)
    out = np.zeros(ROW, np.float32)
    base = np.array(RGB[scene.background], np.float32) / 255
    muted = np.clip(0.55 * base + 0.45 * (0.32 + 0.46 * base.mean()) + _jitter(rng, 0.03), 0, 1)
    out[0:3] = muted
    out[3:6] = muted * (0.5 + 0.15 * rng.random()) if scene.gradient else muted
    out[6] = rng.random() * 2 * math.pi
    out[7] = 1.4 / shrink
    for i, thing in enumerate(scene.things):
        at = BACKGROUND_FIELDS + i * THING_FIELDS
        wobble = 4.0 if len(scene.things) == 3 else 7.0
        colour = np.clip(np.array(RGB[thing.colour], np.float32) / 255 + _jitter(rng, 0.03), 0, 1)
        towards = 0.0 if colour.mean() > 0.6 else 1.0
        out[at] = 1.0
        out[at + 1] = CENTRES[thing.column] + (2 * rng.random() - 1) * wobble - left
        out[at + 2] = CENTRES[thing.row] + (2 * rng.random() - 1) * wobble - top
        out[at + 3] = RADIUS[thing.size] + (2 * rng.random() - 1) * 2.0
        out[at + 4] = (2 * rng.random() - 1) * 0.2
        out[at + 5] = SHAPES.index(thing.shape)
        out[at + 6] = TEXTURES.index(thing.texture)
        out[at + 7] = math.pi * (0.25 + 0.15 * (2 * rng.random() - 1))
        out[at + 8] = rng.random()
        out[at + 9 : at + 12] = colour
        out[at + 12 : at + 15] = colour * 0.5 + towards * 0.5 if thing.texture != "plain" else colour
    micro = np.array([height * shrink, width * shrink, top, left, height, width], np.float32).round()
    return out, micro


def _jitter(rng: random.Random, amount: float) -> np.ndarray:
    return np.array([(2 * rng.random() - 1) * amount for _ in range(3)], np.float32)


def distances(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Signed distance to every shape of unit radius, negative inside; x right, y down. [...] -> [len(SHAPES), ...]."""
    radius, angle = torch.hypot(x, y), torch.atan2(x, -y)  # the angle is 0 straight up
    ax, ay = x.abs(), y.abs()
    down = y - 0.18  # the triangle's centre of mass lies below the middle of its height
    triangle_sector = torch.atan2(x, -down).remainder(2 * math.pi / 3) - math.pi / 3
    star_sector = ((angle + math.pi / 5).remainder(2 * math.pi / 5) - math.pi / 5).abs()
    sx, sy = radius * torch.sin(star_sector), radius * torch.cos(star_sector)
    outer, inner = 1.06, 0.46  # the star's tip at angle 0, its notch at 36 degrees
    nx, ny = inner * math.sin(math.pi / 5), inner * math.cos(math.pi / 5)
    length = math.hypot(nx, outer - ny)
    u, v = (x + y + 0.2) * math.sqrt(0.5), (x - y - 0.2) * math.sqrt(0.5)  # the heart's two axes
    lobe = torch.hypot(ax - 0.4, y + 0.35) - 0.52
    wedge = torch.maximum(torch.maximum(-u + 0.2 - 0.5, u - 0.72), torch.maximum(-v - 0.72, v - 0.3))
    return torch.stack(
        [
            radius - 0.94,
            torch.maximum(ax, ay) - 0.8,
            torch.hypot(x, down) * torch.cos(triangle_sector) - 0.54,
            (sx * (outer - ny) + (sy - outer) * nx) / length,
            (radius - 0.7).abs() - 0.24,
            torch.minimum(torch.maximum(ax - 0.95, ay - 0.32), torch.maximum(ax - 0.32, ay - 0.95)),
            torch.minimum(lobe, wedge),
        ]
    )


def _texture_mask(u: torch.Tensor, v: torch.Tensor, sharpness: torch.Tensor) -> torch.Tensor:
    """How much of the second tone each texture has; u, v in periods. [...] -> [len(TEXTURES), ...], 0 to 1."""
    su, sv = torch.sin(2 * math.pi * u), torch.sin(2 * math.pi * v)
    dot = 0.3 - torch.hypot(u.remainder(1) - 0.5, v.remainder(1) - 0.5)
    waves = torch.stack([torch.full_like(u, -9.0), su, dot * 5, su * sv * 1.5])
    return (0.5 + waves * sharpness).clamp(0, 1)


def render(rows: torch.Tensor, size: int = SIZE, corner: torch.Tensor | None = None) -> torch.Tensor:
    """Pictures of rows from `rasterise`: float [B, ROW] -> float32 [B, 3, size, size], 0 to 1.

    With `corner` [B, 2] (x, y), the window of `size` pixels at that place; else the whole picture at that size.
    """
    rows = rows.float()[:, :, None, None]
    axis = torch.arange(size, device=rows.device, dtype=torch.float32) + 0.5
    axis = axis * (SIZE / size) if corner is None else axis
    py, px = axis[:, None].expand(len(rows), -1, 1), axis[None, :].expand(len(rows), 1, -1)
    if corner is not None:
        px, py = px + corner[:, 0, None, None], py + corner[:, 1, None, None]
    edge = rows[:, 7]
    along = ((px - 128) * torch.cos(rows[:, 6]) + (py - 128) * torch.sin(rows[:, 6])) / 300 + 0.5
    picture = torch.lerp(rows[:, 0:3], rows[:, 3:6], along.clamp(0, 1)[:, None])
    for i in range(MAX_THINGS):
        thing = rows[:, BACKGROUND_FIELDS + i * THING_FIELDS : BACKGROUND_FIELDS + (i + 1) * THING_FIELDS]
        alpha, cx, cy, radius, turn, shape, texture, slant, phase = thing.unbind(1)[:9]
        radius = radius.clamp(min=1.0)
        dx, dy = (px - cx) / radius, (py - cy) / radius
        x = dx * torch.cos(turn) + dy * torch.sin(turn)
        y = dy * torch.cos(turn) - dx * torch.sin(turn)
        d = distances(x, y).gather(0, shape.long().expand(x.shape)[None])[0] * radius
        cover = (0.5 - d / edge).clamp(0, 1) * alpha
        period = 15.0 / radius
        u = (x * torch.cos(slant) + y * torch.sin(slant)) / period + phase
        v = (y * torch.cos(slant) - x * torch.sin(slant)) / period + phase
        tone = _texture_mask(u, v, 2.2 / edge).gather(0, texture.long().expand(u.shape)[None])[0]
        colour = torch.lerp(thing[:, 9:12], thing[:, 12:15], tone[:, None])
        light = 1.0 - 0.10 * (dx + dy) - 0.28 * (1 + d / 6).clamp(0, 1)
        picture = torch.lerp(picture, (colour * light[:, None]).clamp(0, 1), cover[:, None])
    return picture
