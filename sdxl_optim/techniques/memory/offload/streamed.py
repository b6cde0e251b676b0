"""The weights of a part for which there is no room on the device: they stream through it in each call."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from sdxl_optim.techniques.memory.offload.copy_stream import CopyStream
from sdxl_optim.techniques.memory.offload.piece import Piece
from sdxl_optim.techniques.memory.offload.policy import SLOTS

FEW_TENSORS = 12  # a convolution has two, a residual block twelve, a transformer block twice as many


def spread(sizes: list[int], amount: int) -> set[int]:
    """Indices whose sizes come to at least `amount` (or to all there is), spread evenly over the list."""
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


class StreamedPieces:
    """Pieces that share SLOTS buffers: each is copied while pieces before it compute, in the order of the last call."""

    def __init__(self, copies: CopyStream):
        self.pieces: frozenset[Piece] = frozenset()
        self._copies = copies
        self._slots: list[torch.Tensor] = []
        self._held: list[Piece | None] = []  # by slot
        self._next: dict[Piece, Piece] = {}
        self._last: Piece | None = None  # which was called last

    @property
    def nbytes(self) -> int:
        """Of the pieces, which are copied in each call."""
        return sum(piece.nbytes for piece in self.pieces)

    @property
    def slot_bytes(self) -> int:
        """On the device at present."""
        return sum(slot.numel() for slot in self._slots)

    @property
    def open(self) -> bool:
        """Whether there are slots."""
        return bool(self._slots)

    def next_after(self, piece: Piece) -> Piece | None:
        """Which piece was called after this one the last time."""
        return self._next.get(piece)

    def choice(self, candidates: list[Piece], amount: int) -> frozenset[Piece]:
        """Which of all the part's pieces should stream so that `amount` bytes need not stay on the device. That is the
        present choice as long as it serves: a little more than `amount` streams rather than that the choice changes."""
        total, largest = sum(p.nbytes for p in candidates), max((p.nbytes for p in candidates), default=0)
        step = total // 100 + 1
        surplus = self.nbytes - amount
        if surplus == 0 or (amount and 0 <= surplus <= max(2 * step, SLOTS * largest)):
            return self.pieces
        amount = -(-amount // step) * step
        # Each copy costs time of its own, and so does each tensor in it.
        large = [p for p in candidates if p.nbytes >= largest // 4]
        few = [p for p in large if len(p.items) <= FEW_TENSORS]
        enough = (pieces for pieces in (few, large) if sum(p.nbytes for p in pieces) >= amount)
        candidates = next(enough, candidates)
        chosen = spread([p.nbytes for p in candidates], amount) if amount else set()
        return frozenset(candidates[i] for i in chosen)

    def choose(self, pieces: Iterable[Piece]) -> None:
        """Stream these from now on. The slots have to be closed."""
        self.pieces = frozenset(pieces)
        if not self.pieces.issuperset((*self._next, *self._next.values())):
            self._next.clear()

    def open_slots(self) -> None:
        """Allocate the slots. Raises OutOfMemoryError."""
        self._copies.release_cached_blocks()
        size = max(piece.nbytes for piece in self.pieces)
        self._slots = [self._copies.allocate(size) for _ in range(SLOTS)]
        self._held, self._last = [None] * SLOTS, None

    def close_slots(self) -> list[Piece]:
        """Give up the slots. Returns the pieces in them, which the caller has to offload."""
        held = [piece for piece in self._held if piece is not None]
        for piece in self.pieces.difference(held):
            piece.forget_views()
        self._slots, self._held, self._last = [], [], None
        return held

    def before_call(self, piece: Piece) -> None:
        """Copy `piece` unless that was started before."""
        before, self._last = self._last, piece
        if before is not None:
            self._next[before] = piece
        if piece not in self._held:
            free = (slot for slot, held in enumerate(self._held) if held is None)
            self._fill(next(free, int(self._held[0] is before)), piece)

    def after_call(self, piece: Piece) -> None:
        """The slot of `piece` is free: prefetch what came next in the last call."""
        if piece not in self._held:
            return
        coming: list[Piece] = []
        following = self._next.get(piece)
        while len(coming) < SLOTS and following is not None and following not in (piece, *coming):
            coming.append(following)
            following = self._next.get(following)
        for one in coming:
            if one not in self._held:
                self._fill(next(k for k, held in enumerate(self._held) if held not in coming), one)

    def _fill(self, slot: int, piece: Piece) -> None:
        if (before := self._held[slot]) is not None:
            before.copied = None  # the copies run in order, so that nobody has to wait for it
            before.offload()
        self._held[slot] = piece
        self._copies.wait_for_compute()
        self._copies.copy(piece, self._slots[slot])
