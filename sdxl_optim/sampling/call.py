"""What one UNet call does, as a value: made in one place before the call, and handed to whoever acts in it."""

from __future__ import annotations

from collections.abc import Collection, Hashable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Protocol

from sdxl_optim.sampling.loop import StepPlan

Tensor = Any  # torch's; this module does without


@dataclass(frozen=True)
class Kind:
    """What decides a call's operations beside its tensors' shapes. Calls of one kind can share a prepared call.

    techniques: (a technique's key, what it adds to the operations). cached: the call takes a kept feature as its last
    input.
    """

    techniques: tuple[tuple[str, Hashable], ...] = ()
    cached: bool = False


class Exchange(Protocol):
    """The deep features that a UNet call takes from earlier calls and leaves for later ones."""

    @property
    def reused(self) -> Tensor | None:
        """What the call takes instead of computing it, [rows, channels, H, W], until it has taken it."""

    def isolated(self, reused: Tensor | None) -> AbstractContextManager[list[Tensor]]:
        """Context manager: the call is run for its operations alone (to be captured, compiled or compared). It takes
        `reused`, and what it would keep lands in the list; the store knows nothing of it."""

    def save(self, tensor: Tensor) -> None:
        """Keep a copy of `tensor`, a captured call's own memory, as what this call leaves."""


@dataclass(frozen=True)
class UNetCall:
    """One pass of rows through the UNet.

    step: what the sampler step does; None in calls that are none of the run's, in which nothing acts.
    ours: whether the plan knows the call. Others may add calls to ours (PAG does), which are computed in full.
    place: of the call within the pass, for what is kept from one step to the next: (call's place in its step, what the
    rows hold, which part). None: nothing is kept of this call.
    rows, cond_rows: rows of this call; cond rows of the model evaluation it belongs to. cond_at: where they begin.
    model: counts the models of the pass (0, then 1 for the refiner). shape: (height, width, dtype, device) of the
    input.
    operations: (technique's key, what it adds to the call's operations). acting: keys of the techniques that change
    this call's result.
    skipped: the UNet's blocks that do not compute, as the host numbers them; cached: whether any keeps still.
    exchange: of deep features, where a technique keeps any.
    """

    step: StepPlan | None
    ours: bool
    rows: int
    cond_rows: int
    place: Hashable = None
    cond_at: int = 0
    model: int = 0
    shape: tuple = ()
    operations: tuple[tuple[str, Hashable], ...] = ()
    acting: frozenset[str] = frozenset()
    cached: bool = False
    skipped: Collection[Hashable] = ()
    exchange: Exchange | None = None

    @property
    def kind(self) -> Kind | None:
        """For a backend; None for a call that is to be the stock one."""
        return Kind(self.operations, self.cached) if self.ours else None

    def does(self, technique: str) -> bool:
        """Whether the plan has the technique act in this call's step."""
        return self.step is not None and technique in self.step

    def skips(self, block: Hashable) -> bool:
        """Whether the block keeps still. Once the kept feature is taken, whoever runs blocks again computes them."""
        return block in self.skipped and (self.exchange is None or self.exchange.reused is not None)

    def with_operation(self, technique: str, operation: Hashable, acts: bool = True) -> UNetCall:
        """This call, to which the technique adds an operation."""
        acting = self.acting | {technique} if acts else self.acting
        return replace(self, operations=(*self.operations, (technique, operation)), acting=acting)
