"""The three ways to offload a model, by what of it stays on the device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

SLOTS = 2  # buffers for weights that stream through: one computes while the other one is filled


@dataclass(frozen=True)
class Room:
    """The memory that a policy decides by, in bytes.

    limit: what all tensors on the device may take, or None for no limit. used: what other tensors than the part's
    weights take. work: what a call of the part is expected to need beside its weights.
    """

    limit: int | None
    used: int
    work: int

    @property
    def free(self) -> int | None:
        """What is left for the part's weights, or None for no limit."""
        return None if self.limit is None else self.limit - self.used - self.work


@dataclass(frozen=True)
class OffloadPolicy:
    """What stays on the device.

    shares: whether parts that do not work stay where there is room for them. resident: from the bytes of the part that
    works, those of its largest piece, and the room: how many of its bytes stay, the rest streaming through slots; None
    for all of them.
    """

    name: str
    shares: bool
    resident: Callable[[int, int, Room], int | None]


def _all(nbytes: int, largest: int, room: Room) -> None:
    return None


def _none(nbytes: int, largest: int, room: Room) -> int:
    return 0


def _what_fits(nbytes: int, largest: int, room: Room) -> int | None:
    if room.free is None or nbytes <= room.free:
        return None
    return max(room.free - SLOTS * largest, 0)


# The part that works comes first, and other parts stay as far as there is room beside it.
STAGED = OffloadPolicy("staged", shares=True, resident=_what_fits)
# Each part is on the device only while it works, as with diffusers' `enable_model_cpu_offload`.
MODEL = OffloadPolicy("model", shares=False, resident=_all)
# A few layers at a time are on the device, and the next ones on their way; diffusers' `enable_sequential_cpu_offload`
# copies each layer only when it is called.
SEQUENTIAL = OffloadPolicy("sequential", shares=False, resident=_none)
POLICIES = {policy.name: policy for policy in (STAGED, MODEL, SEQUENTIAL)}
