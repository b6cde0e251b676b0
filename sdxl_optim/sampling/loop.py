"""From a plan to what each step and each UNet call does. Every ordering rule is here; no torch.

A *step* is one of the sampler's; a *call* is one evaluation of the model, of which a step may need several (Heun,
DPM2, …). `i` counts steps, `n` is their number in the sampler's real loop.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field


def window(start: float, stop: float, n: int) -> range:
    """The steps inside a half-open window given as fractions: int(start*n) <= i < int(stop*n)."""
    return range(int(start * n), int(stop * n))


@dataclass(frozen=True)
class StepPlan:
    """What one sampler step does."""

    cached: bool = False  # DeepCache may reuse the stored deep features
    cut: bool = False  # only the cond rows are computed
    freeu: bool = False


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


def full_steps_uniform(n: int, interval: int) -> frozenset[int]:
    """DeepCache's uniform positions among n steps: every `interval`-th, from the first on."""
    return frozenset(range(0, n, interval))


def full_steps_nonuniform(n: int, interval: int, center: float, power: float) -> frozenset[int]:
    """DeepCache's non-uniform 1:N positions (arXiv:2312.00858, section 3.3): as many full steps as uniform has, spaced
    evenly after a power curve around `center` (a fraction of n), so that they lie densest there. The first is always 0.
    """
    if n <= 0:
        return frozenset()
    count, middle = -(-n // interval), center * n
    low, high = -(middle ** (1 / power)), (n - middle) ** (1 / power)
    steps = {0}
    for k in range(1, count):
        u = low + (high - low) * k / count
        position = middle + (abs(u) ** power if u >= 0 else -(abs(u) ** power))
        steps.add(min(n - 1, max(0, int(position))))
    # Neighbours that fell on the same step are moved to the free step nearest to the centre, so that the count is kept.
    for i in sorted(range(n), key=lambda i: abs(i - middle)):
        if len(steps) >= count:
            break
        steps.add(i)
    return frozenset(steps)


@dataclass(frozen=True)
class Stored:
    """What is known of a stored deep feature, besides the tensor. cond_at: where its cond rows begin."""

    rows: int
    model: int
    shape: tuple = ()
    cond_at: int = 0


def usable_rows(stored: Stored | None, rows: int, cond_rows: int, model: int, shape: tuple = ()) -> int | None:
    """How many of the stored rows serve a call of `rows` rows, or None where they can't.

    A call that computes only the cond rows takes those of the store. Anything else must match exactly.
    `shape` is all else that must be equal: height, width, dtype and device.
    """
    if stored is None or stored.model != model or stored.shape != shape:
        return None
    if stored.rows == rows:
        return rows
    return rows if rows == cond_rows < stored.rows else None


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


def predict(steps: Sequence[StepPlan], loop: Loop, rows: Rows) -> Counts:
    """The exact counts of a run that follows `steps`: the same rules as at run time, without the tensors."""
    store: dict[tuple[int, int], Stored] = {}
    total = Counts()
    for call in loop.calls:
        step = steps[call.step]
        stock = rows.unet_calls(not call.host_skips, call.same_length)
        parts = rows.unet_calls(not (call.host_skips or step.cut), call.same_length)
        full = cached = cached_rows = 0
        for part, count in enumerate(parts):
            key = (call.place, part)
            if step.cached and usable_rows(store.get(key), count, rows.cond, call.model) is not None:
                cached += 1
                cached_rows += count
            else:
                full += 1
                store[key] = Stored(count, call.model)
        total += Counts(1, full, cached, sum(parts), sum(stock), cached_rows)
    return total
