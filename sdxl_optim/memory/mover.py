"""A model's parts between main memory and the device, by one of the offload modes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from sdxl_optim.memory import model, sequential, staged
from sdxl_optim.memory.meter import Meter
from sdxl_optim.memory.parts import SLOTS, Lane, Part
from sdxl_optim.memory.pieces import Arena

MODES = {"staged": staged, "model": model, "sequential": sequential}
TEXT, UNET, VAE = "text encoders", "unet", "vae"
WHOLE = (VAE,)  # its pieces are the encoder and the decoder, whose precision may be changed meanwhile

SPARE = (1.1, 40_000_000)  # of what a part needs, as a factor and in bytes: an allocator can't use every byte


@dataclass(frozen=True)
class Room:
    """What a mode decides from. Bytes; limit None: no bound. work: what the part is expected to need beside weights."""

    limit: int | None
    used: int
    work: int

    @property
    def free(self) -> int | None:
        return None if self.limit is None else self.limit - self.used - self.work


class Mover:
    """While open, the parts come to `device` when they are called and wait in main memory otherwise.

    work: bytes that each part is expected to need beside its weights; what it really needs is measured at its first
    call for the same `key` (set it to whatever the need depends on: size, batch) and used from then on.
    """

    def __init__(self, parts: dict[str, nn.Module], device, mode: str, meter: Meter | None = None, work=None):
        self.device, self.mode = torch.device(device), MODES[mode]
        self.meter = meter or Meter(self.device)
        self.key: object = None
        self.guess: dict[str, int] = dict(work or {})
        self.streamed: dict[str, int] = {}  # bytes that pass through at each call, by part
        self._measured: dict[tuple, int] = {}
        self._measuring: tuple[Part, object, int] | None = None  # with its key, and what was used as it began
        self.lane = Lane(self.device)
        self.arena = Arena(pinned=self.device.type == "cuda")
        self.parts = {
            name: Part(name, module, self.lane, self.arena, self._call, whole=name in WHOLE)
            for name, module in parts.items()
        }

    def close(self, device: torch.device | None = None) -> None:
        """Each tensor gets memory of its own on `device` (None: the device), and no hook is left."""
        for part in self.parts.values():
            part.close(self.device if device is None else device)

    def settle(self) -> None:
        """Put right what others have moved since: what belongs into main memory goes there."""
        for part in self.parts.values():
            part.settle()

    def leave(self, names: Iterable[str] | None = None) -> None:
        """These parts (None: all) go home now, not only when another one needs the room."""
        for name in self.parts if names is None else names:
            if name in self.parts and self.parts[name].inside:
                self.parts[name].leave()

    @property
    def changed(self) -> bool:
        return any(part.changed for part in self.parts.values())

    def bytes_inside(self) -> int:
        return sum(part.bytes_inside for part in self.parts.values())

    def _call(self, part: Part) -> None:
        self._measure()
        if part.inside:
            if part.streamed and self._fits_better(part):
                part.leave()
            else:
                return
        for other in self.parts.values():
            if other.inside and not self.mode.keeps(other, part, self._room(part)):
                other.leave()
        part.enter(self.mode.resident(part, self._room(part)))
        self.streamed[part.name] = part.bytes_streamed
        self._begin(part)

    def _room(self, part: Part) -> Room:
        work = self._measured.get((part.name, self.key), self.guess.get(part.name, 0))
        return Room(self.meter.limit(), self.meter.used(), int(work * SPARE[0]) + SPARE[1])

    def _begin(self, part: Part) -> None:
        if self.meter.measures and (part.name, self.key) not in self._measured:
            self.meter.reset()
            self._measuring = (part, self.key, self.meter.used())

    def _measure(self) -> None:
        """At the next call of any part it is known what the last one needed beside what was there anyway."""
        measuring, self._measuring = self._measuring, None
        if measuring is not None and measuring[0].inside:
            part, key, before = measuring
            self._measured[part.name, key] = max(self.meter.peak() - before, 0)

    def _fits_better(self, part: Part) -> bool:
        room = self._room(part)
        resident = self.mode.resident(part, Room(room.limit, room.used - part.bytes_inside, room.work))
        before = part.nbytes - part.bytes_streamed
        after = part.nbytes if resident is None else min(resident, part.nbytes)
        return abs(after - before) > max(part.nbytes // 50, SLOTS * part.largest)
