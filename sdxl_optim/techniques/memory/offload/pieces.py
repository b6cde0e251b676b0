"""A module in pieces that move as one, and their place in main memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

ALIGNMENT = 256  # bytes
LIMIT = 75_000_000  # bytes of a piece: a transformer block of SDXL's widest level is just below
CHUNK = 1 << 29  # bytes: torch rounds pinned memory up to a power of two, so it is taken in such


def tensors_of(module: nn.Module, recurse: bool = True) -> list[torch.Tensor]:
    """Parameters and buffers, each once."""
    found = (*module.parameters(recurse), *module.buffers(recurse))
    return list({id(tensor): tensor for tensor in found}.values())


def bytes_of(module: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in tensors_of(module))


def split(module: nn.Module, limit: int = LIMIT) -> tuple[list[nn.Module], list[torch.Tensor]]:
    """(pieces of at most `limit` bytes where they can be split, tensors that belong to none).

    A piece is a module whose own forward is certain to be called: containers are not, as others iterate over them.
    Modules that torch itself defines are never split, since they may use their children's weights directly.
    """
    pieces: list[nn.Module] = []
    loose: list[torch.Tensor] = []

    def walk(part: nn.Module) -> None:
        size, children = bytes_of(part), list(part.children())
        if size == 0:
            return
        if not _is_container(part) and (size <= limit or not children or type(part).__module__.startswith("torch.nn")):
            pieces.append(part)
            return
        loose.extend(tensors_of(part, recurse=False))
        for child in children:
            walk(child)

    walk(module)
    return pieces, loose


def _is_container(module: nn.Module) -> bool:
    containers = (nn.ModuleList, nn.ModuleDict, nn.Sequential)
    return (
        isinstance(module, containers)
        or type(module) is nn.Module
        or any(isinstance(child, nn.ModuleList) for child in module.children())
    )


class Arena:
    """Main memory for pieces, pinned where a GPU reads it, in chunks that torch does not round up."""

    def __init__(self, pinned: bool):
        self.pinned = pinned
        self.chunks: list[list] = []  # [tensor, bytes used]

    def take(self, nbytes: int) -> torch.Tensor:
        """A flat uint8 tensor."""
        for chunk in self.chunks:
            if chunk[0].numel() - chunk[1] >= nbytes:
                return self._cut(chunk, nbytes)
        size = max(CHUNK, nbytes) if self.pinned else nbytes
        self.chunks.append([self._new(size), 0])
        return self._cut(self.chunks[-1], nbytes)

    def _cut(self, chunk: list, nbytes: int) -> torch.Tensor:
        start, chunk[1] = chunk[1], chunk[1] + nbytes
        return chunk[0][start : start + nbytes]

    def _new(self, size: int) -> torch.Tensor:
        if self.pinned:
            try:
                return torch.empty(size, dtype=torch.uint8, pin_memory=True)
            except RuntimeError:  # the system sets bounds to what may be pinned; unpinned memory is only slower
                self.pinned = False
        return torch.empty(size, dtype=torch.uint8)


@dataclass
class _Item:
    tensor: torch.Tensor
    offset: int
    home: torch.Tensor | None = None  # its place in main memory, as a view
    at_home: int = 0  # data_ptr of that
    place: int = 0  # data_ptr where it was put
    version: int = 0


class Piece:
    """The tensors of one module, packed into one flat buffer, so that one copy moves them all.

    `flat` is where they are on the device or on their way to, None while they are at home in main memory. On their way,
    the module still has those at home, until `arrive`. Whoever writes into a tensor meanwhile (LoRA does) or moves it
    (the host does) is noticed, and it is the tensor that counts.
    """

    def __init__(self, module: nn.Module, arena: Arena):
        self.module = module
        self.flat: torch.Tensor | None = None
        self._arena = arena
        self.arrived = True
        self._views: dict[int, list[torch.Tensor]] = {}
        self._lay_out()

    def _lay_out(self) -> None:
        self.items, end = [], 0
        for tensor in tensors_of(self.module):
            self.items.append(_Item(tensor, end))
            end += -(-_span(tensor) // ALIGNMENT) * ALIGNMENT
        self.nbytes = max(end, ALIGNMENT)
        self.layout = [(i.tensor.shape, i.tensor.stride(), i.tensor.dtype) for i in self.items]
        self.home = self._arena.take(self.nbytes)
        self._views.clear()
        for item, view in zip(self.items, self._make_views(self.home), strict=True):
            item.home, item.at_home = view, view.data_ptr()
            view.copy_(item.tensor.data)
        self._point_home()

    def fetch(self, buffer: torch.Tensor) -> None:
        """Start to copy to the first bytes of `buffer`, on the current stream and without waiting."""
        self.go_home()
        self.flat, self.arrived = buffer[: self.nbytes], False
        for item in self.items:
            item.version = item.tensor._version
        self.flat.copy_(self.home, non_blocking=True)

    def arrive(self) -> None:
        """Be where `fetch` copies to, `intact` given. That the copy is over before anything is done with it, the caller
        sees to."""
        if self.arrived:
            return
        self.arrived = True
        for item, view in zip(self.items, self._views_on(self.flat), strict=True):
            tensor = item.tensor
            if tensor._version != item.version:
                view.copy_(tensor.data)
            tensor.data = view
            item.place, item.version = view.data_ptr(), tensor._version

    def go_home(self) -> None:
        """Be in main memory. Copies only what was changed."""
        if self.intact:
            if self.flat is None:
                return
        elif [(t.shape, t.stride(), t.dtype) for t in (i.tensor for i in self.items)] != self.layout:
            self.flat, self.arrived = None, True
            self._lay_out()
            return
        for item in self.items:
            tensor = item.tensor
            place = tensor.data_ptr()
            if place != item.at_home and (place != item.place or tensor._version != item.version):
                item.home.copy_(tensor.data)
        self._point_home()
        self.flat, self.arrived = None, True

    def release(self, device: torch.device) -> None:
        """Give each tensor memory of its own on `device`, as if nothing had been. Pinned memory is kept where it is to
        be main memory: a copy would take the same again, and the next move be slower."""
        self.go_home()
        self._views.clear()
        if device.type == "cpu" and self.home.is_pinned():
            return
        for item in self.items:
            data = item.tensor.data
            own = torch.empty_strided(data.shape, data.stride(), dtype=data.dtype, device=device)
            item.tensor.data = own.copy_(data)

    @property
    def intact(self) -> bool:
        return all(i.tensor.data_ptr() == i.place for i in self.items)

    def _point_home(self) -> None:
        for item in self.items:
            tensor = item.tensor
            if tensor.data_ptr() != item.at_home:
                tensor.data = item.home
            item.place, item.version = item.at_home, tensor._version

    def _views_on(self, flat: torch.Tensor) -> list[torch.Tensor]:
        key = flat.data_ptr()
        views = self._views.get(key)
        if views is None:
            if len(self._views) > 4:  # of buffers that are no more
                self._views.clear()
            views = self._views[key] = self._make_views(flat)
        return views

    def _make_views(self, flat: torch.Tensor) -> list[torch.Tensor]:
        bases = {dtype: flat.view(dtype) for dtype in {layout[2] for layout in self.layout}}
        views = []
        for item, (shape, stride, dtype) in zip(self.items, self.layout, strict=True):
            base = bases[dtype]
            views.append(base.as_strided(shape, stride, base.storage_offset() + item.offset // base.element_size()))
        return views

    def forget_views(self) -> None:
        """Of a buffer that is about to be freed: a view would keep it."""
        self._views.clear()


def _span(tensor: torch.Tensor) -> int:
    """Bytes from its first to its last element."""
    if tensor.numel() == 0:
        return 0
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (last + 1) * tensor.element_size()
