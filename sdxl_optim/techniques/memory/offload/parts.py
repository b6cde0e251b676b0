"""A part of a model (text encoders, UNet, VAE) that comes to the device for its work and makes room afterwards."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import accumulate, groupby

import torch
from torch import nn

from sdxl_optim.techniques.memory.offload.lane import Lane
from sdxl_optim.techniques.memory.offload.pieces import LIMIT, Arena, Piece, split

SLOTS = 2  # one piece computes, the next one arrives
FEW = 12  # tensors: a convolution has two, a residual block twelve, a transformer block twice as many
GROUP = 256_000_000  # bytes that come and go together, or less in a small part
GROUPS = 8  # of a small part


def spread(sizes: list[int], amount: int) -> set[int]:
    """Indices whose sizes come to at least `amount` (or to all there is), spread as evenly as they lie."""
    total, chosen, got, due = sum(sizes), set(), 0, 0.0
    for i, size in enumerate(sizes):
        due += size * min(amount / total, 1) if total else 0
        if got < amount and due - got >= size / 2:
            chosen.add(i)
            got += size
    for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        if got >= amount:
            break
        if i not in chosen:
            chosen.add(i)
            got += sizes[i]
    return chosen


@dataclass(eq=False)
class Group:
    """Pieces in one buffer on the device. They come and go together."""

    buffer: torch.Tensor
    pieces: list[Piece]

    @property
    def nbytes(self) -> int:
        return self.buffer.numel()


class Part:
    """`module` in pieces, in the order of their work. Some stay on the device, in groups; where there is no room for
    all of them, the others pass through SLOTS buffers, each fetched while the piece before it works.

    Room is made from the end: what is needed last has the most time to come back.

    on_call: called before a piece runs that begins a call of the part, and before one that is not on the device.
    on_end: called after a piece that is a call by itself.
    """

    def __init__(
        self,
        name: str,
        module: nn.Module,
        lane: Lane,
        arena: Arena,
        on_call: Callable[[Part], None],
        on_end: Callable[[], None],
        whole: bool,
    ):
        """whole: children are pieces as they are, each of them a call; else it is split to small ones."""
        self.name, self.module, self.lane = name, module, lane
        self._on_call, self._on_end, self._whole = on_call, on_end, whole
        if whole:
            modules, self.loose = [m for m in module.children() if any(True for _ in m.parameters())], []
        else:
            size = sum(t.nbytes for t in module.parameters())
            modules, self.loose = split(module, min(LIMIT, max(size // 16, 1)) if name == "unet" else LIMIT)
        for tensor in self.loose:
            tensor.data = tensor.data.to(lane.device)
        self.pieces = [Piece(m, arena) for m in modules]
        self.nbytes = sum(p.nbytes for p in self.pieces)
        size = max(min(GROUP, self.nbytes // GROUPS), 1)
        ends = accumulate(p.nbytes for p in self.pieces)
        self._group_of = {p: (end - 1) // size for p, end in zip(self.pieces, ends, strict=True)}
        self.streamed: set[Piece] = set()
        self.groups: list[Group] = []
        self._events: dict[Piece, object] = {}
        self._slots: list[torch.Tensor] = []
        self._held: list[Piece | None] = []
        self._next: dict[Piece, Piece] = {}
        self._last: Piece | None = None
        self._hooks: dict[Piece, list] = {}
        for piece in self.pieces:
            self._watch(piece)
        self.shape = [id(m) for m in module.modules()]

    @property
    def largest(self) -> int:
        return max((p.nbytes for p in self.pieces), default=0)

    @property
    def inside(self) -> bool:
        """Whether any of it is on the device."""
        return bool(self.groups or self._slots)

    @property
    def ready(self) -> bool:
        """Whether it can work: what stays is there, and the slots for the rest."""
        return bool(self._slots or not self.streamed) and not self._missing()

    @property
    def bytes_inside(self) -> int:
        """On the device at present."""
        return sum(g.nbytes for g in self.groups) + sum(s.numel() for s in self._slots)

    @property
    def bytes_streamed(self) -> int:
        return sum(p.nbytes for p in self.streamed)

    def enter(self, resident: int | None) -> None:
        """Come to the device, as far as it is not there. resident: bytes that may stay while the part is at work, None
        for all."""
        self._stream(0 if resident is None else max(self.nbytes - resident, 0))
        self._drop_all(lambda group: any(p.flat is None for p in group.pieces))  # others have moved them
        if self.streamed and not self._slots:
            self.lane.tidy()
            size = max(p.nbytes for p in self.streamed)
            self._slots = [self.lane.new(size) for _ in range(SLOTS)]
            self._held, self._last = [None] * SLOTS, None
        self._fetch(self._runs(self._missing()))

    def come(self, room: int | None) -> int:
        """As much of what stays comes back as fits into `room` bytes (None: no bound). Returns the bytes."""
        runs, amount = [], 0
        for run in self._runs(self._missing()):
            amount += sum(p.nbytes for p in run)
            if room is not None and amount > room:
                break
            runs.append(run)
        with contextlib.suppress(torch.cuda.OutOfMemoryError):  # it has time
            self._fetch(runs)
        return sum(p.nbytes for run in runs for p in run if p.flat is not None)

    def make_room(self, amount: int) -> int:
        """Give up `amount` bytes, or what there is, from the end. Returns the bytes."""
        got = sum(s.numel() for s in self._slots) if amount > 0 else 0
        if got:
            self._drop_slots()
        for group in self.groups[::-1]:
            if got >= amount:
                break
            got += group.nbytes
            self._drop(group)
        return got

    def leave(self) -> None:
        """Go home."""
        self._drop_slots()
        self._drop_all(lambda group: True)
        self._send_home(self.pieces)
        self.streamed = set()

    def settle(self) -> None:
        """Put right what others have moved meanwhile."""
        if not self.inside or not all(p.intact for p in self.pieces):
            self.leave()
        for tensor in self.loose:
            tensor.data = tensor.data.to(self.lane.device)

    @property
    def changed(self) -> bool:
        """Whether its modules are no longer the ones that the pieces were made of."""
        return self.shape != [id(m) for m in self.module.modules()]

    def close(self, device: torch.device) -> None:
        if any(tensor.is_meta for tensor in self.module.parameters()):  # its host has thrown it away
            self._wait(self.pieces)
            self.groups, self._slots, self._held = [], [], []
        else:
            self.leave()
            for piece in self.pieces:
                piece.release(device)
            for tensor in self.loose:
                tensor.data = tensor.data.to(device)
        for piece in self.pieces:
            self._unwatch(piece)

    # --- what stays

    def _missing(self) -> list[Piece]:
        return [p for p in self.pieces if p.flat is None and p not in self.streamed]

    def _stream(self, amount: int) -> None:
        """Choose what passes through: `amount` bytes. A little more than that stays as it is."""
        step = self.nbytes // 100 + 1
        surplus = self.bytes_streamed - amount
        if surplus == 0 or (amount and 0 <= surplus <= max(2 * step, SLOTS * self.largest)):
            return
        amount = -(-amount // step) * step
        # A fetch costs time of its own, too, and each tensor of it.
        large = [p for p in self.pieces if p.nbytes >= self.largest // 4]
        few = [p for p in large if len(p.items) <= FEW]
        enough = (pieces for pieces in (few, large) if sum(p.nbytes for p in pieces) >= amount)
        candidates = next(enough, self.pieces)
        chosen = spread([p.nbytes for p in candidates], amount) if amount else set()
        streamed = {candidates[i] for i in chosen}
        if streamed == self.streamed:
            return
        self._drop_slots()
        self.streamed = streamed
        if not streamed.issuperset((*self._next, *self._next.values())):
            self._next.clear()
        self._drop_all(lambda group: not streamed.isdisjoint(group.pieces))

    def _runs(self, pieces: Iterable[Piece]) -> list[list[Piece]]:
        """What is to be a group each."""
        return [list(run) for _, run in groupby(pieces, self._group_of.get)]

    def _fetch(self, runs: list[list[Piece]]) -> None:
        if not runs:
            return
        self.lane.tidy()
        groups = [group for run in runs for group in self._allocate(run)]
        self.lane.follow()
        for group in groups:
            self.groups.append(group)
            start = 0
            for piece in group.pieces:
                self._events[piece] = self.lane.fetch(piece, group.buffer[start:])
                start += piece.nbytes
        order = {piece: i for i, piece in enumerate(self.pieces)}
        self.groups.sort(key=lambda g: order[g.pieces[0]])

    def _allocate(self, run: list[Piece]) -> list[Group]:
        """One group, or several where memory is in bits."""
        try:
            return [Group(self.lane.new(sum(p.nbytes for p in run)), run)]
        except torch.cuda.OutOfMemoryError:
            if len(run) == 1:
                raise
        half = len(run) // 2
        return self._allocate(run[:half]) + self._allocate(run[half:])

    def _drop(self, group: Group) -> None:
        self.groups.remove(group)
        self._send_home(group.pieces)

    def _drop_all(self, which: Callable[[Group], bool]) -> None:
        for group in [g for g in self.groups if which(g)]:
            self._drop(group)

    def _drop_slots(self) -> None:
        self._send_home(p for p in self._held if p is not None)
        for piece in self.streamed:
            piece.forget_views()
        self._slots, self._held, self._last = [], [], None

    def _send_home(self, pieces: Iterable[Piece]) -> None:
        pieces = list(pieces)
        self._wait(pieces)
        for piece in pieces:
            piece.go_home()
            piece.forget_views()
            self._watch(piece)

    def _wait(self, pieces: Iterable[Piece]) -> None:
        """What they are being copied to may be freed: work asked for from here on comes afterwards."""
        for piece in pieces:
            self.lane.wait(self._events.pop(piece, None))

    # --- the hooks

    def _watch(self, piece: Piece) -> None:
        if piece not in self._hooks:
            module = piece.module
            before = module.register_forward_pre_hook(self._before(piece), prepend=True)
            self._hooks[piece] = [before, module.register_forward_hook(self._after(piece))]

    def _unwatch(self, piece: Piece) -> None:
        """It stays where it is: no need to ask at each of its calls."""
        for hook in self._hooks.pop(piece, ()):
            hook.remove()

    def _before(self, piece: Piece):
        begins = self._whole or piece is self.pieces[0]

        def before(module, args) -> None:
            if not piece.arrived and not piece.intact:
                self._send_home([piece])
            if begins or (piece.flat is None and piece not in self.streamed):
                self._on_call(self)
            if piece in self.streamed:
                self._have(piece)
            self.lane.wait(self._events.pop(piece, None))
            piece.arrive()
            if not begins and piece not in self.streamed:
                self._unwatch(piece)

        return before

    def _have(self, piece: Piece) -> None:
        before, self._last = self._last, piece
        if before is not None:
            self._next[before] = piece
        if piece not in self._held:
            free = (slot for slot, held in enumerate(self._held) if held is None)
            self._fill(next(free, int(self._held[0] is before)), piece)

    def _fill(self, slot: int, piece: Piece) -> None:
        if (before := self._held[slot]) is not None:
            self._events.pop(before, None)
            before.go_home()
        self._held[slot] = piece
        self.lane.follow()
        self._events[piece] = self.lane.fetch(piece, self._slots[slot])

    def _after(self, piece: Piece):
        def after(module, args, output) -> None:
            """Its buffer is free: fetch what comes next, as it came the last time."""
            if self._whole:
                self._on_end()
            if piece not in self._held:
                return
            coming, following = [], piece
            while len(coming) < SLOTS and (following := self._next.get(following)) not in (None, piece, *coming):
                coming.append(following)
            for one in coming:
                if one not in self._held:
                    self._fill(next(k for k, held in enumerate(self._held) if held not in coming), one)

        return after
