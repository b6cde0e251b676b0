"""A part of a model (text encoders, UNet, VAE) that is on the device for its work and makes room afterwards."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from sdxl_optim.techniques.memory.offload.copy_stream import CopyStream
from sdxl_optim.techniques.memory.offload.piece import PIECE_BYTES, Arena, Piece, split
from sdxl_optim.techniques.memory.offload.resident import ResidentGroups
from sdxl_optim.techniques.memory.offload.streamed import StreamedPieces

TEXT, UNET, VAE = "text encoders", "unet", "vae"


@dataclass(frozen=True)
class PartTraits:
    """What differs between the parts.

    pieces: a small part is split into about as many pieces at least. called_by_children: its children are called one by
    one, and each is a piece, as the VAE's encoder and decoder, whose precision may be changed between their calls.
    headroom: how many times the measured need of a call is kept free, as an allocator can't use every byte.
    """

    pieces: int = 1
    called_by_children: bool = False
    headroom: float = 1.5


# The headrooms are assumed. With them SDXL keeps to hard caps, in tests/unit/test_memory_room.py by a model of torch's
# allocator and in benchmarks/memory.py on a card. The VAE, which needs by far the most, has less, as it can free the
# others and try again (`Mover.free_others`).
TRAITS = {
    TEXT: PartTraits(),
    UNET: PartTraits(pieces=16),
    VAE: PartTraits(called_by_children=True, headroom=1.3),
}


def traits_of(name: str) -> PartTraits:
    return TRAITS.get(name, PartTraits())


class ModelPart:
    """`module` in pieces, in the order of their calls. Some stay on the device; where there is no room for all of them,
    the others stream through it.

    on_call: called before a piece runs that begins a call of the part, and before one that is not on the device.
    on_end: called after a piece that is a call by itself.
    """

    def __init__(
        self,
        name: str,
        module: nn.Module,
        copies: CopyStream,
        arena: Arena,
        on_call: Callable[[ModelPart], None],
        on_end: Callable[[], None],
    ):
        self.name, self.module, self.traits = name, module, traits_of(name)
        self._copies, self._on_call, self._on_end = copies, on_call, on_end
        modules, self._loose = self._split()
        for tensor in self._loose:
            tensor.data = tensor.data.to(copies.device)
        self.pieces = [Piece(m, arena) for m in modules]
        self.nbytes = sum(p.nbytes for p in self.pieces)
        self.largest = max((p.nbytes for p in self.pieces), default=0)
        self.resident = ResidentGroups(self.pieces, copies)
        self.streamed = StreamedPieces(copies)
        self._hooks: dict[Piece, list] = {}
        for piece in self.pieces:
            self._hook(piece)
        self._modules = [id(m) for m in module.modules()]

    def _split(self) -> tuple[list[nn.Module], list[torch.Tensor]]:
        """(modules that become pieces, tensors that belong to none of them and stay on the device)."""
        if self.traits.called_by_children:
            return [m for m in self.module.children() if any(True for _ in m.parameters())], []
        limit = PIECE_BYTES
        if self.traits.pieces > 1:
            limit = min(limit, max(sum(t.nbytes for t in self.module.parameters()) // self.traits.pieces, 1))
        return split(self.module, limit)

    @property
    def on_device(self) -> bool:
        """Whether any of its pieces is."""
        return self.bytes_on_device > 0

    @property
    def bytes_on_device(self) -> int:
        return self.resident.nbytes + self.streamed.slot_bytes

    @property
    def ready(self) -> bool:
        """Whether it can work: what stays is on the device, and so are the slots for the rest."""
        return (self.streamed.open or not self.streamed.pieces) and not self._missing()

    @property
    def rebuilt(self) -> bool:
        """Whether its modules are no longer the ones that the pieces were made of."""
        return self._modules != [id(m) for m in self.module.modules()]

    def onload(self, resident: int | None) -> None:
        """Bring to the device what is not there. resident: bytes that may stay while the part works, None for all.
        Raises OutOfMemoryError."""
        self._choose_streamed(0 if resident is None else max(self.nbytes - resident, 0))
        self._offload(self.resident.drop(lambda group: any(p.flat is None for p in group.pieces)))  # moved by others
        if self.streamed.pieces and not self.streamed.open:
            self.streamed.open_slots()
        self.resident.copy_in(self._missing())

    def prefetch(self, room: int | None) -> int:
        """Bring back as much of what stays as fits into `room` bytes (None: no limit). Returns the bytes."""
        missing = self._missing()
        with contextlib.suppress(torch.cuda.OutOfMemoryError):  # its next call brings it
            self.resident.copy_in(missing, room)
        return sum(p.nbytes for p in missing if p.flat is not None)

    def make_room(self, nbytes: int) -> int:
        """Give up as many bytes of the device, or what there is. Returns the bytes."""
        if nbytes <= 0:
            return 0
        before = self.bytes_on_device
        self._offload(self.streamed.close_slots())
        self._offload(self.resident.drop_last(nbytes - (before - self.bytes_on_device)))
        return before - self.bytes_on_device

    def offload(self) -> None:
        """Give up all memory on the device."""
        self._offload([*self.streamed.close_slots(), *self.resident.drop()])
        self._offload(self.pieces)
        self.streamed.choose(())

    def resync(self) -> None:
        """Offload what others have moved to the device in the meantime."""
        if not self.on_device or not all(p.intact for p in self.pieces):
            self.offload()
        for tensor in self._loose:
            tensor.data = tensor.data.to(self._copies.device)

    def close(self, device: torch.device) -> None:
        """Give each tensor memory of its own on `device`, and remove the hooks."""
        if any(tensor.is_meta for tensor in self.module.parameters()):  # its host has discarded the model
            for piece in self.pieces:
                self._copies.wait_for_copy(piece)
            self.resident.drop()
            self.streamed.close_slots()
        else:
            self.offload()
            for piece in self.pieces:
                piece.release(device)
            for tensor in self._loose:
                tensor.data = tensor.data.to(device)
        for piece in self.pieces:
            self._unhook(piece)

    def _missing(self) -> list[Piece]:
        """Pieces that should stay on the device but are not there."""
        return [p for p in self.pieces if p.flat is None and p not in self.streamed.pieces]

    def _choose_streamed(self, nbytes: int) -> None:
        """Stream about `nbytes` in each call; the rest stays."""
        chosen = self.streamed.choice(self.pieces, nbytes)
        if chosen == self.streamed.pieces:
            return
        self._offload(self.streamed.close_slots())
        self.streamed.choose(chosen)
        self._offload(self.resident.drop(lambda group: not chosen.isdisjoint(group.pieces)))

    def _offload(self, pieces: list[Piece]) -> None:
        for piece in pieces:
            self._copies.wait_for_copy(piece)  # the memory that it writes to may be freed
        for piece in pieces:
            piece.offload()
            piece.forget_views()
            self._hook(piece)

    # --- the hooks

    def _hook(self, piece: Piece) -> None:
        if piece not in self._hooks:
            module = piece.module
            before = module.register_forward_pre_hook(self._before(piece), prepend=True)
            self._hooks[piece] = [before, module.register_forward_hook(self._after(piece))]

    def _unhook(self, piece: Piece) -> None:
        for hook in self._hooks.pop(piece, ()):
            hook.remove()

    def _before(self, piece: Piece):
        begins = self.traits.called_by_children or piece is self.pieces[0]

        def before(module, args) -> None:
            if not piece.arrived and not piece.intact:  # others moved its tensors while it was being copied
                self._offload([piece])
            streams = piece in self.streamed.pieces
            if begins or (piece.flat is None and not streams):
                self._on_call(self)
                streams = piece in self.streamed.pieces
            if streams:
                self.streamed.before_call(piece)
            self._copies.wait_for_copy(piece)
            piece.onload()
            if not begins and not streams:  # it stays, so that its later calls need no hook
                self._unhook(piece)

        return before

    def _after(self, piece: Piece):
        def after(module, args, output) -> None:
            if self.traits.called_by_children:
                self._on_end()
            self.streamed.after_call(piece)

        return after
