"""A model of torch's caching allocator on CUDA (its pool of blocks above 1 MB), for plans that depend on it."""

from __future__ import annotations

import bisect
import itertools
import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

MB = 1 << 20
_numbers = itertools.count()


class Block:
    def __init__(self, size: int, before: Block | None = None, after: Block | None = None):
        self.size, self.before, self.after, self.free = size, before, after, False
        self.number = next(_numbers)


class CachingAllocator:
    """cap: bytes that may be reserved in all. driver_calls: how often memory came from the device or went back."""

    def __init__(self, cap: int):
        self.cap = cap
        self.allocated = self.reserved = self.peak = self.driver_calls = 0
        self._free: list[tuple[int, int, Block]] = []  # by size

    def new(self, size: int) -> Block:
        size = -(-size // 512) * 512
        block = self._best_fit(size) or self._from_device(size)
        if block.size - size > MB:
            rest = Block(block.size - size, block, block.after)
            if rest.after:
                rest.after.before = rest
            block.size, block.after = size, rest
            self._keep(rest)
        self.allocated += block.size
        self.peak = max(self.peak, self.allocated)
        return block

    def give_back(self, block: Block) -> None:
        self.allocated -= block.size
        for other in (block.before, block.after):
            if other is not None and other.free:
                self._take(other)
                block.size += other.size
                if other is block.before:
                    block.before = other.before
                    if block.before:
                        block.before.after = block
                else:
                    block.after = other.after
                    if block.after:
                        block.after.before = block
        self._keep(block)

    def empty_cache(self) -> None:
        """torch.cuda.empty_cache"""
        for _, _, block in list(self._free):
            if block.before is None and block.after is None:
                self._take(block)
                self.reserved -= block.size
                self.driver_calls += 1

    def tensor(self, nbytes: int, scale: int = 1) -> torch.Tensor:
        """Bytes in main memory, of which each stands for `scale` here, as long as its storage lives."""
        block = self.new(nbytes * scale)
        tensor = torch.empty(nbytes, dtype=torch.uint8)
        weakref.finalize(tensor.untyped_storage(), self.give_back, block)
        return tensor

    def _keep(self, block: Block) -> None:
        block.free = True
        bisect.insort(self._free, (block.size, block.number, block))

    def _take(self, block: Block) -> None:
        block.free = False
        self._free.pop(bisect.bisect_left(self._free, (block.size, block.number)))

    def _best_fit(self, size: int) -> Block | None:
        i = bisect.bisect_left(self._free, (size,))
        if i == len(self._free):
            return None
        block = self._free[i][2]
        self._take(block)
        return block

    def _from_device(self, size: int) -> Block:
        segment = 20 * MB if size < 10 * MB else -(-size // (2 * MB)) * 2 * MB
        if self.reserved + segment > self.cap:
            self.empty_cache()
        if self.reserved + segment > self.cap:
            raise torch.cuda.OutOfMemoryError(f"{size} bytes, {self.allocated} allocated, {self.reserved} reserved")
        self.reserved += segment
        self.driver_calls += 1
        return Block(segment)


class Recorder(TorchDispatchMode):
    """Context manager: records what is allocated and freed on the meta device, as (number, bytes), bytes 0 for the end.

    Convolutions take `workspace` times their input and output for their own time, which cuDNN does on its own account.
    """

    def __init__(self, *modules: torch.nn.Module, workspace: float):
        super().__init__()
        self.events: list[tuple[int, int]] = []
        self._workspace, self._numbers = workspace, itertools.count()
        self._known = {p.untyped_storage()._cdata for module in modules for p in module.parameters()}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if "convolution" in str(function):
            number = next(self._numbers)
            self.events += [(number, int(self._workspace * (args[0].nbytes + out.nbytes))), (number, 0)]
        for tensor in tree_flatten(out)[0]:
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage.nbytes() > MB and storage._cdata not in self._known:
                    number = next(self._numbers)
                    self._known.add(storage._cdata)
                    self.events.append((number, storage.nbytes()))
                    weakref.finalize(storage, self._gone, storage._cdata, number)
        return out

    def _gone(self, key: int, number: int) -> None:
        self._known.discard(key)
        self.events.append((number, 0))
