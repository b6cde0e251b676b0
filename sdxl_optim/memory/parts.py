"""A part of a model (text encoders, UNet, VAE) that comes to the device for its work and goes home afterwards."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from sdxl_optim.memory.pieces import LIMIT, Arena, Piece, split

SLOTS = 2  # one piece computes, the next one arrives


class Lane:
    """Copies beside the work: a stream of their own on CUDA, the ordinary order of things elsewhere."""

    def __init__(self, device: torch.device):
        self.device = torch.device(device)
        self._stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        self.moved = 0  # bytes brought to the device

    def fetch(self, piece: Piece, buffer: torch.Tensor) -> torch.cuda.Event | None:
        """Start the copy once the device has done all work asked for so far. The event is its end."""
        self.moved += piece.nbytes
        if self._stream is None:
            piece.fetch(buffer)
            return None
        piece.go_home()
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._stream):
            piece.fetch(buffer)
            return self._stream.record_event()

    def wait(self, event: torch.cuda.Event | None) -> None:
        if event is not None:
            torch.cuda.current_stream(self.device).wait_event(event)

    def finish(self) -> None:
        """Work asked for from here on comes after all copies: what they wrote to may be freed."""
        if self._stream is not None:
            torch.cuda.current_stream(self.device).wait_stream(self._stream)


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


class Part:
    """`module` in pieces. Some stay on the device while the part is in; the others pass through SLOTS buffers, each
    fetched while the piece before it works.

    on_call: called before a piece runs that begins a call of the part, and on its first call after it was out.
    """

    def __init__(self, name: str, module: nn.Module, lane: Lane, arena: Arena, on_call: Callable[[Part], None], whole):
        """whole: children are pieces as they are; else it is split to small ones."""
        self.name, self.module, self.lane = name, module, lane
        self._on_call = on_call
        if whole:
            modules, self.loose = [m for m in module.children() if any(True for _ in m.parameters())], []
        else:
            size = sum(t.nbytes for t in module.parameters())
            modules, self.loose = split(module, min(LIMIT, max(size // 16, 1)) if name == "unet" else LIMIT)
        for tensor in self.loose:
            tensor.data = tensor.data.to(lane.device)
        self.pieces = [Piece(m, arena) for m in modules]
        self.nbytes = sum(p.nbytes for p in self.pieces)
        self.inside = False
        self.streamed: set[Piece] = set()
        self._events: dict[Piece, object] = {}
        self._buffer: torch.Tensor | None = None
        self._slots: list[torch.Tensor] = []
        self._held: list[Piece | None] = []
        self._next: dict[Piece, Piece] = {}
        self._last: Piece | None = None
        self._hooks = []
        for piece in self.pieces:
            self._hooks.append(piece.module.register_forward_pre_hook(self._before(piece), prepend=True))
            self._hooks.append(piece.module.register_forward_hook(self._after(piece)))
        self.shape = [id(m) for m in module.modules()]

    @property
    def largest(self) -> int:
        return max((p.nbytes for p in self.pieces), default=0)

    @property
    def bytes_inside(self) -> int:
        """On the device at present."""
        buffers = [b for b in (self._buffer, *self._slots) if b is not None]
        return sum(b.numel() for b in buffers)

    @property
    def bytes_streamed(self) -> int:
        return sum(p.nbytes for p in self.streamed)

    def enter(self, resident: int | None) -> None:
        """Come to the device. resident: bytes that may stay there while the part is in, None for all."""
        amount = 0 if resident is None else max(self.nbytes - resident, 0)
        chosen = spread([p.nbytes for p in self.pieces], amount) if amount else set()
        self.streamed = {self.pieces[i] for i in chosen}
        staying = [p for p in self.pieces if p not in self.streamed]
        device = self.lane.device
        self._buffer = torch.empty(sum(p.nbytes for p in staying), dtype=torch.uint8, device=device)
        if self.streamed:
            size = max(p.nbytes for p in self.streamed)
            self._slots = [torch.empty(size, dtype=torch.uint8, device=device) for _ in range(SLOTS)]
        self._held = [None] * len(self._slots)
        start = 0
        for piece in staying:
            self._events[piece] = self.lane.fetch(piece, self._buffer[start:])
            start += piece.nbytes
        self.inside = True
        self._last = None

    def leave(self) -> None:
        """Go home."""
        self.lane.finish()
        for piece in self.pieces:
            piece.go_home()
            piece.forget_views()
        self._events.clear()
        self._buffer, self._slots, self._held, self.streamed = None, [], [], set()
        self.inside = False

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
        self.lane.finish()
        for hook in self._hooks:
            hook.remove()
        if not any(tensor.is_meta for tensor in self.module.parameters()):  # else its host has thrown it away
            for piece in self.pieces:
                piece.release(device)
            for tensor in self.loose:
                tensor.data = tensor.data.to(device)
        self._buffer, self._slots, self._held = None, [], []

    # --- the hooks

    def _before(self, piece: Piece):
        first = piece is self.pieces[0]

        def before(module, args) -> None:
            if first or not self.inside:
                self._on_call(self)
            if piece in self.streamed:
                self._have(piece)
            self.lane.wait(self._events.pop(piece, None))

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
        self._events[piece] = self.lane.fetch(piece, self._slots[slot])

    def _after(self, piece: Piece):
        def after(module, args, output) -> None:
            """Its buffer is free: fetch what comes next, as it came the last time."""
            if piece not in self._held:
                return
            coming, following = [], piece
            while len(coming) < SLOTS and (following := self._next.get(following)) not in (None, piece, *coming):
                coming.append(following)
            for one in coming:
                if one not in self._held:
                    self._fill(next(k for k, held in enumerate(self._held) if held not in coming), one)

        return after
