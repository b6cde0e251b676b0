"""Where a model's deep features change most: measured once, stored, and used to place DeepCache's full steps.

A calibration says how wrong a prediction becomes at one noise level when the deep features kept at another, earlier one
are used. It is measured on a grid of noise levels, so it serves every sampler, schedule and number of steps; a run
reads no tensor, and its plan stays exact.
"""

from __future__ import annotations

import bisect
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

from sdxl_optim.errors import SettingsError
from sdxl_optim.wording import Text, message

ENDING = "deepcache.json"
WORTHWHILE = 5 / 6  # of uniform's summed error: where adaptive positions promise less of a gain, uniform ones are kept


@dataclass(frozen=True)
class Calibration:
    """model: whom it was measured on. branch: DeepCache's branch.

    timesteps: noise levels in the model's own count (999 is pure noise), falling.
    error[i][j]: relative error of the prediction at timesteps[j] with features kept at timesteps[i]; 0 for i >= j.
    """

    model: str
    branch: int
    timesteps: tuple[float, ...]
    error: tuple[tuple[float, ...], ...]

    def at(self, kept: float, now: float) -> float:
        """The error at timestep `now` with features kept at `kept`, between the grid's values linearly."""
        i, u = self._place(kept)
        j, v = self._place(now)
        rows = [(1 - v) * self.error[k][j] + v * self.error[k][j + 1] for k in (i, i + 1)]
        return (1 - u) * rows[0] + u * rows[1]

    def _place(self, timestep: float) -> tuple[int, float]:
        """The grid's interval around `timestep` and the share of the way through it."""
        falling = self.timesteps
        i = bisect.bisect_left(falling, -timestep, key=lambda t: -t) - 1
        i = min(max(i, 0), len(falling) - 2)
        share = (falling[i] - timestep) / (falling[i] - falling[i + 1])
        return i, min(max(share, 0.0), 1.0)


@cache
def _sigmas() -> tuple[float, ...]:
    """Noise levels of Stable Diffusion's 1000 timesteps (scaled linear betas), rising."""
    low, high, kept, out = 0.00085**0.5, 0.012**0.5, 1.0, []
    for t in range(1000):
        kept *= 1 - (low + (high - low) * t / 999) ** 2
        out.append(((1 - kept) / kept) ** 0.5)
    return tuple(out)


def sigma_of(timestep: float) -> float:
    """The noise level at a timestep, logarithmically between whole ones."""
    t = min(max(timestep, 0.0), 999.0)
    i = min(int(t), 998)
    a, b = _sigmas()[i : i + 2]
    return a * (b / a) ** (t - i)


def timestep_of(sigma: float) -> float:
    """The timestep of a noise level, 0 to 999."""
    levels = _sigmas()
    if sigma <= levels[0]:
        return 0.0
    i = min(bisect.bisect_left(levels, sigma), 999)
    a, b = levels[i - 1], levels[i]
    return min(999.0, i - 1 + math.log(sigma / a) / math.log(b / a))


def path_beside(model: str | Path) -> Path:
    """Where the calibration of a model is kept: in its folder, or beside its file."""
    model = Path(model)
    return model / ENDING if model.is_dir() else model.with_suffix("." + ENDING)


def find(model: str | Path) -> tuple[Calibration | None, Text | None]:
    """The calibration of a model, or None and why."""
    path = path_beside(model)
    if not path.is_file():
        text = "this model has no calibration; `python -m sdxl_optim calibrate` writes {file}"
        return None, message(text, file=path.name)
    try:
        return load(path), None
    except SettingsError:
        return None, message("{file} is not a file that `calibrate` wrote", file=path.name)


def save(calibration: Calibration, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asdict(calibration)), encoding="utf-8")


def load(path: Path) -> Calibration:
    """Raises SettingsError for a file that is no calibration."""
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
        timesteps = tuple(float(t) for t in given["timesteps"])
        error = tuple(tuple(float(e) for e in row) for row in given["error"])
        calibration = Calibration(str(given["model"]), int(given["branch"]), timesteps, error)
    except (OSError, ValueError, KeyError, TypeError) as reason:
        raise SettingsError("calibration", path.name, "a file that `calibrate` wrote") from reason
    n = len(timesteps)
    if n < 2 or list(timesteps) != sorted(set(timesteps), reverse=True) or [len(row) for row in error] != [n] * n:
        raise SettingsError("calibration", path.name, "a file that `calibrate` wrote")
    return calibration


def full_steps_adaptive(calibration: Calibration, timesteps: Sequence[float], count: int) -> frozenset[int]:
    """The `count` full steps of a run over `timesteps` that keep the sum of the cached steps' errors smallest.

    The first step is always full. Found by dynamic programming over (number of full steps, last full step): n² × count
    sums.
    """
    return _cheapest(_costs(calibration, timesteps), count)


def _cheapest(cost: list[list[float]], count: int) -> frozenset[int]:
    n = len(cost)
    count = min(count, n)
    if count <= 0:
        return frozenset()
    best = [cost[0][j] for j in range(n + 1)]  # of all before step j, with the full steps so far
    came_from: list[list[int]] = [[0] * (n + 1)]
    for _ in range(1, count):
        new, source = [float("inf")] * (n + 1), [0] * (n + 1)
        for j in range(1, n + 1):
            for i in range(1, j):
                total = best[i] + cost[i][j]
                if total < new[j]:
                    new[j], source[j] = total, i
        best = new
        came_from.append(source)

    steps, j = {0}, n
    for source in reversed(came_from[1:]):
        j = source[j]
        steps.add(j)
    return frozenset(steps)


def is_worthwhile(calibration: Calibration, timesteps: Sequence[float], uniform: frozenset[int]) -> bool:
    """Whether as many adaptive full steps promise clearly less error than the `uniform` ones.

    What is summed up is a prediction: each cached step's error alone, at its own place. On the demo model (64 prompts)
    it was right in all 13 settings where it promised a gain of over a sixth, wrong in 1 of 5 where it promised less.
    """
    cost = _costs(calibration, timesteps)
    return _summed(cost, _cheapest(cost, len(uniform))) <= WORTHWHILE * _summed(cost, uniform)


def _costs(calibration: Calibration, timesteps: Sequence[float]) -> list[list[float]]:
    """[i][j]: what the cached steps i+1 … j-1 add when step i is the last full one. An error counts by how far its step
    moves latents of unit variance, |Δσ| / sqrt(1 + σ²)."""
    n = len(timesteps)
    sigmas = [*map(sigma_of, timesteps), 0.0]
    weights = [abs(a - b) / math.hypot(1, a) for a, b in pairwise(sigmas)]
    cost = [[0.0] * (n + 1) for _ in range(n)]
    for i in range(n):
        for j in range(i + 1, n):
            cost[i][j + 1] = cost[i][j] + weights[j] * calibration.at(timesteps[i], timesteps[j])
    return cost


def _summed(cost: list[list[float]], full: frozenset[int]) -> float:
    return sum(cost[i][j] for i, j in pairwise([*sorted(full), len(cost)]))
