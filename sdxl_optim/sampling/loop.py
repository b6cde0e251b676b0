"""The words of a sampler's loop: steps, calls, rows and their counts. No torch.

A *step* is one of the sampler's; a *call* is one evaluation of the model, of which a step may need several (Heun,
DPM2, …). `i` counts steps, `n` is their number in the sampler's real loop.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field


def window(start: float, stop: float, n: int) -> range:
    """The steps inside a half-open window given as fractions: int(start*n) <= i < int(stop*n)."""
    return range(int(start * n), int(stop * n))


@dataclass(frozen=True)
class StepPlan:
    """What one sampler step does: the keys of the techniques that act in it. `"freeu" in step` asks for one.

    drops_uncond: only the cond rows are computed.
    """

    techniques: frozenset[str] = frozenset()
    drops_uncond: bool = False

    def __contains__(self, technique: str) -> bool:
        return technique in self.techniques


@dataclass(frozen=True)
class Call:
    """One model evaluation of the sampler's loop, known before it runs.

    step: the sampler step it belongs to; place: 0 for the first call of its step, 1 for the second, …
    sigma: the noise level that the sampler asks for (timestep, for samplers that count in those).
    host_skips: the host itself computes no uncond rows in this call.
    same_length: whether cond and uncond have equally many tokens; prompt editing may change it. None: as in Rows.
    model: 0 until the refiner takes over, then 1.
    """

    step: int
    place: int
    sigma: float = 0.0
    host_skips: bool = False
    model: int = 0
    same_length: bool | None = None


@dataclass(frozen=True)
class Loop:
    """The sampler's real loop: its calls in order. `foreseeable` is false where only running it can tell; then
    `at_least` is a number of calls that it can't do without. `needs_uncond` is true where the sampler works with the
    unconditional prediction itself (CFG++)."""

    calls: tuple[Call, ...] = ()
    foreseeable: bool = True
    needs_uncond: bool = False
    at_least: int = 0

    @property
    def n(self) -> int:
        return 1 + max((call.step for call in self.calls), default=-1)

    @classmethod
    def of_steps(cls, calls_per_step: Iterable[int]) -> Loop:
        return cls(tuple(Call(i, place) for i, count in enumerate(calls_per_step) for place in range(count)))


@dataclass(frozen=True)
class Rows:
    """How the host lays out one denoiser call.

    cond, uncond: rows of each; batch: pictures. Where the prompts' lengths differ (same_length false), the uncond
    rows go through the UNet in a call of their own; where the user switched batching off (batched false), each call
    takes at most `batch` rows.
    """

    cond: int
    uncond: int
    batch: int = 1
    same_length: bool = True
    batched: bool = True

    def unet_calls(self, with_uncond: bool, same_length: bool | None = None) -> tuple[int, ...]:
        """Rows of each UNet call of a denoiser call."""
        same_length = self.same_length if same_length is None else same_length
        if with_uncond and not same_length:
            return (*_chunks(self.cond, self.batch * (2 if self.batched else 1)), self.uncond)
        total = self.cond + self.uncond * with_uncond
        return _chunks(total, total if self.batched else self.batch)


def _chunks(total: int, size: int) -> tuple[int, ...]:
    return tuple(min(size, total - k) for k in range(0, total, size))


@dataclass(frozen=True)
class Counts:
    """Denoiser calls, UNet calls (full and cached) and rows through the UNet, `cached_rows` of them in cached calls;
    `stock_rows` is what a stock run computes."""

    calls: int = 0
    full: int = 0
    cached: int = 0
    rows: int = 0
    stock_rows: int = 0
    cached_rows: int = field(default=0, compare=False)

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(getattr(self, f) + getattr(other, f) for f in self.__dataclass_fields__))
