"""A model's parts between main memory and the device, by one of the offload modes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from sdxl_optim.techniques.memory.offload import model, sequential, staged
from sdxl_optim.techniques.memory.offload.lane import Lane
from sdxl_optim.techniques.memory.offload.meter import Meter
from sdxl_optim.techniques.memory.offload.parts import Part
from sdxl_optim.techniques.memory.offload.pieces import Arena

MODES = {"staged": staged, "model": model, "sequential": sequential}
TEXT, UNET, VAE = "text encoders", "unet", "vae"
WHOLE = (VAE,)  # its pieces are the encoder and the decoder, whose precision may be changed meanwhile

# An allocator can't use every byte. Beside weights, so many times what a part needs is left for its work, and bytes.
# The VAE, which takes by far the most, can try again (`Mover.relieve`).
FACTOR, FACTORS, SPARE = 1.5, {VAE: 1.3}, 60_000_000
RETRIES = 4  # where memory is short although it should suffice


@dataclass(frozen=True)
class Room:
    """What a mode decides from. Bytes; limit None: no bound. work: what the part is expected to need beside weights."""

    limit: int | None
    used: int
    work: int

    @property
    def free(self) -> int | None:
        return None if self.limit is None else self.limit - self.used - self.work


def room_within(nbytes: int, name: str) -> int:
    """Bytes that the part of that name may need for its work where so many are left for it."""
    return int((nbytes - SPARE) / FACTORS.get(name, FACTOR))


class Mover:
    """While open, the parts come to `device` when they are called and wait in main memory otherwise.

    work: bytes that each part is expected to need beside its weights; what it really needs is measured at its first
    call for the same `key` (set it to whatever the need depends on: size, batch) and used from then on.
    """

    def __init__(
        self,
        parts: dict[str, nn.Module],
        device,
        mode: str,
        meter: Meter | None = None,
        work: dict[str, int] | None = None,
        lane: Lane | None = None,
    ):
        self.device, self.mode = torch.device(device), MODES[mode]
        self.meter = meter or Meter(self.device)
        self.key: object = None
        self.guess: dict[str, int] = dict(work or {})
        self.streamed: dict[str, int] = {}  # bytes that pass through at each call, by part
        self._measured: dict[tuple, int] = {}
        self._measuring: tuple[Part, object, int] | None = None  # with its key, and what was used as it began
        self._at_work: tuple[Part, object] | None = None  # with its key
        self.lane = lane or Lane(self.device)
        self.arena = Arena(pinned=self.device.type == "cuda")
        self.parts = {
            name: Part(name, module, self.lane, self.arena, self._call, self._learn, whole=name in WHOLE)
            for name, module in parts.items()
        }
        self._recent: list[Part] = list(self.parts.values())  # the one at work is the last

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

    def relieve(self) -> bool:
        """The part at work has run out of memory: the others go home, and it will be given more the next time. Returns
        whether that made any room, so that it may try again."""
        if self._at_work is None:
            return False
        part, key = self._at_work
        others = [other for other in self.parts.values() if other is not part and other.inside]
        self.leave(other.name for other in others)
        self.lane.tidy()
        if others:
            work = self._measured.get((part.name, key), self.guess.get(part.name, 0))
            self._measured[part.name, key] = int(work * FACTORS.get(part.name, FACTOR))
        return bool(others)

    def make_way(self, nbytes: int) -> None:
        """Somebody who is none of the parts is about to take so much, which no part's own work is to be blamed for."""
        self._learn()
        limit, made = self.meter.limit(), 0
        lack = 0 if limit is None else nbytes + SPARE - (limit - self.meter.used())
        for part in self._recent[::-1]:
            if not self.mode.SHARES:
                part.leave()
            elif made < lack:
                made += part.make_room(lack - made)
        self.lane.tidy()

    @property
    def changed(self) -> bool:
        return any(part.changed for part in self.parts.values())

    def bytes_inside(self) -> int:
        return sum(part.bytes_inside for part in self.parts.values())

    def _call(self, part: Part) -> None:
        learned = self._measure(part)
        if not learned and self._at_work == (part, self.key) and part.ready:
            if self._measuring is None:  # one of several calls, as the VAE's of its quant convolution and its decoder
                self._begin(part)
            return
        self._at_work = part, self.key
        self._recent.remove(part)
        others, self._recent = self._recent, [*self._recent, part]
        self._bring(part, others)
        if self.mode.SHARES:
            self._bring_back(part, others)
        self.streamed[part.name] = part.bytes_streamed
        self._begin(part)

    def _bring(self, part: Part, others: list[Part]) -> None:
        """`part` comes to the device, and the others make room. The order of parts is the same in each picture: what
        worked last is needed last."""
        room, made = self._room(part), 0
        for other in others[::-1]:
            if not self.mode.SHARES:
                made += other.bytes_inside
                other.leave()
            elif room.free is not None and (lack := part.nbytes - room.free - made) > 0:
                made += other.make_room(lack)
        room = self._room(part)
        if made:
            self.lane.tidy()
        resident = self.mode.resident(part, room)
        for retry in range(RETRIES + 1):
            try:
                part.enter(resident)
                return
            except torch.cuda.OutOfMemoryError:  # there is less than the plan knows of
                if retry == RETRIES:
                    raise
            for one in self.parts.values():
                one.leave()
            self.lane.tidy()
            resident = int((part.nbytes if resident is None else resident) * (1 - (retry + 1) / RETRIES))

    def _bring_back(self, part: Part, others: list[Part]) -> None:
        """What made room comes back while `part` works, as far as it fits."""
        room = self._room(part)
        free = None if room.free is None else room.free - part.bytes_inside
        for other in others:
            came = other.come(free)
            free = None if free is None else free - came

    def _room(self, part: Part) -> Room:
        """With what the part itself takes counted as free."""
        guess = self.guess.get(part.name, 0)
        work = self._measured.get((part.name, self.key), guess)
        if part.name in WHOLE:
            work = max(work, guess)  # which of its calls was measured, and which one is next, is not known
        used = self.meter.used() - part.bytes_inside
        return Room(self.meter.limit(), used, int(work * FACTORS.get(part.name, FACTOR)) + SPARE)

    def _begin(self, part: Part) -> None:
        if self.meter.measures:
            self.meter.reset()
            self._measuring = part, self.key, self.meter.used()

    def _measure(self, part: Part) -> bool:
        """Before a call of `part`: whether one has shown what it needs, which was not known before."""
        if self._measuring is None:
            return False
        last, key, _ = self._measuring
        same, known = (last, key) == (part, self.key), (last.name, key) in self._measured
        if not (same and known):
            self._learn()
        return same and not known

    def _learn(self) -> None:
        """What the part at work has needed beside what was there anyway."""
        if self._measuring is not None:
            part, key, before = self._measuring
            need = max(self.meter.peak() - before, self._measured.get((part.name, key), 0))
            self._measured[part.name, key] = need
            self._measuring = None
