"""Pieces of a module, each of which moves in one copy, and the main memory that they wait in."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import nn

ALIGNMENT = 256  # bytes
PIECE_BYTES = 75_000_000  # at most: a transformer block of SDXL's widest level is just below
CHUNK_BYTES = 1 << 29  # torch rounds pinned memory up to a power of two, so it is allocated in such sizes


def tensors_of(module: nn.Module, recurse: bool = True) -> list[torch.Tensor]:
    """The module's parameters and buffers, each once."""
    found = (*module.parameters(recurse), *module.buffers(recurse))
    return list({id(tensor): tensor for tensor in found}.values())


def bytes_of(module: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in tensors_of(module))


def split(module: nn.Module, limit: int = PIECE_BYTES) -> tuple[list[nn.Module], list[torch.Tensor]]:
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
    """Main memory for pieces, in chunks that torch does not round up. pinned: whether a GPU copies from it."""

    def __init__(self, pinned: bool):
        self.pinned = pinned
        self.chunks: list[list] = []  # [tensor, bytes used]

    def allocate(self, nbytes: int) -> torch.Tensor:
        """Main memory, as a flat uint8 tensor."""
        for chunk in self.chunks:
            if chunk[0].numel() - chunk[1] >= nbytes:
                return self._cut(chunk, nbytes)
        size = max(CHUNK_BYTES, nbytes) if self.pinned else nbytes
        self.chunks.append([self._new(size), 0])
        return self._cut(self.chunks[-1], nbytes)

    def _cut(self, chunk: list, nbytes: int) -> torch.Tensor:
        start, chunk[1] = chunk[1], chunk[1] + nbytes
        return chunk[0][start : start + nbytes]

    def _new(self, size: int) -> torch.Tensor:
        if self.pinned:
            try:
                return torch.empty(size, dtype=torch.uint8, pin_memory=True)
            except RuntimeError:  # the system limits what may be pinned; unpinned memory is only slower
                self.pinned = False
        return torch.empty(size, dtype=torch.uint8)


@dataclass
class _Item:
    tensor: torch.Tensor
    offset: int
    main: torch.Tensor = field(init=False)  # its place in main memory, as a view
    main_address: int = 0  # data_ptr of that
    address: int = 0  # data_ptr where it was put last
    version: int = 0  # of the tensor, then


class Piece:
    """The tensors of one module, packed into one flat buffer, so that one copy moves them all.

    flat: where they are on the device or are being copied to, None while they are in main memory. copied: the event at
    the end of the copy under way. While it is under way, the module has its tensors in main memory, until `onload`.
    Others may write into a tensor meanwhile (LoRA does) or move it (the WebUI does): that is noticed, and the tensor's
    value counts.
    """

    def __init__(self, module: nn.Module, arena: Arena):
        self.module = module
        self.flat: torch.Tensor | None = None
        self.copied: torch.cuda.Event | None = None
        self.arrived = True  # False from `prefetch` to `onload`
        self._arena = arena
        self._views: dict[int, list[torch.Tensor]] = {}
        self._lay_out()

    def _lay_out(self) -> None:
        self.items, end = [], 0
        for tensor in tensors_of(self.module):
            self.items.append(_Item(tensor, end))
            end += -(-_span(tensor) // ALIGNMENT) * ALIGNMENT
        self.nbytes = max(end, ALIGNMENT)
        self.layout = [(i.tensor.shape, i.tensor.stride(), i.tensor.dtype) for i in self.items]
        self.main = self._arena.allocate(self.nbytes)
        self._views.clear()
        for item, view in zip(self.items, self._make_views(self.main), strict=True):
            item.main, item.main_address = view, view.data_ptr()
            view.copy_(item.tensor.data)
        self._point_to_main()

    def prefetch(self, buffer: torch.Tensor) -> None:
        """Start to copy to the first bytes of `buffer`, on the current stream and without waiting."""
        self.offload()
        self.flat, self.arrived = buffer[: self.nbytes], False
        for item in self.items:
            item.version = item.tensor._version
        self.flat.copy_(self.main, non_blocking=True)

    def onload(self) -> None:
        """Let the module use the copy that `prefetch` started. Nobody has moved its tensors since (`intact`), and the
        caller sees to it that the copy has ended before they are read."""
        if self.arrived or self.flat is None:
            return
        self.arrived = True
        for item, view in zip(self.items, self._views_on(self.flat), strict=True):
            tensor = item.tensor
            if tensor._version != item.version:
                view.copy_(tensor.data)
            tensor.data = view
            item.address, item.version = view.data_ptr(), tensor._version

    def offload(self) -> None:
        """Let the module use main memory. Copies only what was changed."""
        if self.intact:
            if self.flat is None:
                return
        elif [(t.shape, t.stride(), t.dtype) for t in (i.tensor for i in self.items)] != self.layout:
            self.flat, self.arrived = None, True
            self._lay_out()
            return
        for item in self.items:
            tensor = item.tensor
            address = tensor.data_ptr()
            if address != item.main_address and (address != item.address or tensor._version != item.version):
                item.main.copy_(tensor.data)
        self._point_to_main()
        self.flat, self.arrived = None, True

    def release(self, device: torch.device) -> None:
        """Give each tensor memory of its own on `device`. On the CPU pinned memory is kept: a copy would take as much
        again, and the next move would be slower."""
        self.offload()
        self._views.clear()
        if device.type == "cpu" and self.main.is_pinned():
            return
        for item in self.items:
            data = item.tensor.data
            own = torch.empty_strided(data.shape, data.stride(), dtype=data.dtype, device=device)
            item.tensor.data = own.copy_(data)

    @property
    def intact(self) -> bool:
        """Whether each tensor is where it was put."""
        return all(i.tensor.data_ptr() == i.address for i in self.items)

    def _point_to_main(self) -> None:
        for item in self.items:
            tensor = item.tensor
            if tensor.data_ptr() != item.main_address:
                tensor.data = item.main
            item.address, item.version = item.main_address, tensor._version

    def _views_on(self, flat: torch.Tensor) -> list[torch.Tensor]:
        key = flat.data_ptr()
        views = self._views.get(key)
        if views is None:
            if len(self._views) > 4:  # of buffers that were freed
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
        """Drop the views on a buffer that is to be freed: each of them would keep it."""
        self._views.clear()


def _span(tensor: torch.Tensor) -> int:
    """Bytes from the first to the last element of `tensor`."""
    if tensor.numel() == 0:
        return 0
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (last + 1) * tensor.element_size()
