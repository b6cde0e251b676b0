"""Moves a model's parts between main memory and the device, by one of the offload policies."""

from __future__ import annotations

from collections.abc import Hashable, Iterable

import torch
from torch import nn

from sdxl_optim.techniques.memory.offload.copy_stream import CopyStream
from sdxl_optim.techniques.memory.offload.meter import CallNeeds, Meter
from sdxl_optim.techniques.memory.offload.part import ModelPart, traits_of
from sdxl_optim.techniques.memory.offload.piece import Arena
from sdxl_optim.techniques.memory.offload.policy import POLICIES, Room

SPARE_BYTES = 60_000_000  # kept free beside weights and calls (assumed: prompts, latents, and gaps of the allocator)
RETRIES = 4  # of an onload that runs out of memory although the plan has room for it


def room_within(nbytes: int, name: str) -> int:
    """Bytes that a call of the named part may need where `nbytes` are left for it."""
    return int((nbytes - SPARE_BYTES) / traits_of(name).headroom)


class Mover:
    """Until closed, the parts come to `device` when they are called and are in main memory otherwise.

    guess: bytes that a call of each part is expected to need beside its weights. What it really needs is measured at
    its first call for the same key (see `begin_pass`) and used from then on.
    bytes_streamed: what streams through the device in each call, by part.
    """

    def __init__(
        self,
        parts: dict[str, nn.Module],
        device,
        policy: str,
        meter: Meter | None = None,
        guess: dict[str, int] | None = None,
        copies: CopyStream | None = None,
    ):
        self.device, self.policy = torch.device(device), POLICIES[policy]
        self.meter = meter or Meter(self.device)
        self.copies = copies or CopyStream(self.device)
        self.bytes_streamed: dict[str, int] = {}
        self._needs = CallNeeds(self.meter, guess)
        self._working: tuple[ModelPart, Hashable] | None = None  # the part called last, with its key
        arena = Arena(pinned=self.device.type == "cuda")
        self.parts = {
            name: ModelPart(name, module, self.copies, arena, self._before_call, self._needs.end)
            for name, module in parts.items()
        }
        self._recent: list[ModelPart] = list(self.parts.values())  # the one called last is the last

    def begin_pass(self, key: Hashable, guess: dict[str, int], budget: float) -> None:
        """What the next calls depend on. key: size and batch, by which measured needs are remembered. guess: as above.
        budget: GB of 10^9 bytes that may be filled, 0 for all that is free."""
        self._needs.key, self._needs.guess, self.meter.budget = key, dict(guess), budget

    def close(self, device: torch.device | None = None) -> None:
        """Give each tensor memory of its own on `device` (None: the device), and remove all hooks."""
        for part in self.parts.values():
            part.close(self.device if device is None else device)

    def resync(self) -> None:
        """Offload what others have moved to the device in the meantime."""
        for part in self.parts.values():
            part.resync()

    def offload(self, names: Iterable[str] | None = None) -> None:
        """Offload these parts (None: all) now, not only when another one needs the room."""
        for name in self.parts if names is None else names:
            if name in self.parts and self.parts[name].on_device:
                self.parts[name].offload()

    def free_others(self) -> bool:
        """The part that works ran out of memory: offload the others, and keep more free for it from now on. Returns
        whether that made room, so that it may try again."""
        if self._working is None:
            return False
        part, key = self._working
        others = [other.name for other in self.parts.values() if other is not part and other.on_device]
        self.offload(others)
        self.copies.release_cached_blocks()
        if others:
            self._needs.raise_by(part.traits.headroom, part.name, key)
        return bool(others)

    def reserve(self, nbytes: int) -> None:
        """Free `nbytes` for a tensor outside the parts, without counting it as any part's working memory."""
        self._needs.end()
        limit, made = self.meter.limit(), 0
        lack = 0 if limit is None else nbytes + SPARE_BYTES - (limit - self.meter.used())
        for part in self._recent[::-1]:
            if not self.policy.shares:
                part.offload()
            elif made < lack:
                made += part.make_room(lack - made)
        self.copies.release_cached_blocks()

    @property
    def stale(self) -> bool:
        """Whether a part's modules were replaced since."""
        return any(part.rebuilt for part in self.parts.values())

    def bytes_on_device(self) -> int:
        return sum(part.bytes_on_device for part in self.parts.values())

    def _before_call(self, part: ModelPart) -> None:
        learned = self._needs.end_before(part.name)
        if not learned and self._working == (part, self._needs.key) and part.ready:
            if not self._needs.measuring:  # one of several calls, as the VAE's of its quant convolution and its decoder
                self._needs.begin(part.name)
            return
        self._working = part, self._needs.key
        self._recent.remove(part)
        others, self._recent = self._recent, [*self._recent, part]
        self._onload(part, others)
        if self.policy.shares:
            self._prefetch(part, others)
        self.bytes_streamed[part.name] = part.streamed.nbytes
        self._needs.begin(part.name)

    def _onload(self, part: ModelPart, others: list[ModelPart]) -> None:
        """Bring `part` to the device, and let the others make room. Parts are called in the same order for each
        picture: what was called last is needed last."""
        room, made = self._room(part), 0
        for other in others[::-1]:
            if not self.policy.shares:
                made += other.bytes_on_device
                other.offload()
            elif room.free is not None and (lack := part.nbytes - room.free - made) > 0:
                made += other.make_room(lack)
        room = self._room(part)
        if made:
            self.copies.release_cached_blocks()
        resident = self.policy.resident(part.nbytes, part.largest, room)
        for retry in range(RETRIES + 1):
            try:
                part.onload(resident)
                return
            except torch.cuda.OutOfMemoryError:  # others have taken memory that the meter does not see
                if retry == RETRIES:
                    raise
            for one in self.parts.values():
                one.offload()
            self.copies.release_cached_blocks()
            resident = int((part.nbytes if resident is None else resident) * (1 - (retry + 1) / RETRIES))

    def _prefetch(self, part: ModelPart, others: list[ModelPart]) -> None:
        """Bring back what made room, as far as it fits, while `part` works."""
        room = self._room(part)
        free = None if room.free is None else room.free - part.bytes_on_device
        for other in others:
            came = other.prefetch(free)
            free = None if free is None else free - came

    def _room(self, part: ModelPart) -> Room:
        """The part's own bytes on the device count as free."""
        # Of several kinds of call, it is not known which one was measured and which one is next.
        work = self._needs.of(part.name, at_least_guess=part.traits.called_by_children)
        used = self.meter.used() - part.bytes_on_device
        return Room(self.meter.limit(), used, int(work * part.traits.headroom) + SPARE_BYTES)
