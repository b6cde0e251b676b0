"""The weights of a part that stay on the device while it works."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import accumulate, groupby

import torch

from sdxl_optim.techniques.memory.offload.copy_stream import CopyStream
from sdxl_optim.techniques.memory.offload.piece import Piece

# Assumed: large enough that few allocations suffice, small enough that little more is given up than another part needs.
GROUP_BYTES = 256_000_000  # at most
GROUPS = 8  # at least


@dataclass(eq=False)
class Group:
    """Pieces that share one buffer on the device, and so come and go together."""

    buffer: torch.Tensor
    pieces: list[Piece]

    @property
    def nbytes(self) -> int:
        return self.buffer.numel()


class ResidentGroups:
    """Pieces on the device, in groups, in the order in which the part calls them.

    Groups are given up from the end: what the part needs last has the most time to come back. Methods that drop groups
    return their pieces, which the caller has to offload.
    """

    def __init__(self, pieces: list[Piece], copies: CopyStream):
        """pieces: all of the part's, in the order of their calls."""
        self._copies = copies
        self._groups: list[Group] = []
        self._position = {piece: i for i, piece in enumerate(pieces)}
        size = max(min(GROUP_BYTES, sum(p.nbytes for p in pieces) // GROUPS), 1)
        ends = accumulate(p.nbytes for p in pieces)
        self._group_of = {piece: (end - 1) // size for piece, end in zip(pieces, ends, strict=True)}

    @property
    def nbytes(self) -> int:
        return sum(group.nbytes for group in self._groups)

    def copy_in(self, pieces: Iterable[Piece], room: int | None = None) -> None:
        """Start to copy `pieces`, as many groups as fit into `room` bytes (None: no limit). Raises OutOfMemoryError."""
        chosen = self._fitting([list(run) for _, run in groupby(pieces, self._group_of.get)], room)
        if not chosen:
            return
        self._copies.release_cached_blocks()
        groups = [group for run in chosen for group in self._allocate(run)]
        self._copies.wait_for_compute()
        for group in groups:
            self._groups.append(group)
            start = 0
            for piece in group.pieces:
                self._copies.copy(piece, group.buffer[start:])
                start += piece.nbytes
        self._groups.sort(key=lambda group: self._position[group.pieces[0]])

    @staticmethod
    def _fitting(runs: list[list[Piece]], room: int | None) -> list[list[Piece]]:
        if room is None:
            return runs
        ends = accumulate(sum(p.nbytes for p in run) for run in runs)
        return [run for run, end in zip(runs, ends, strict=True) if end <= room]

    def _allocate(self, run: list[Piece]) -> list[Group]:
        """One group, or several if free memory is fragmented."""
        try:
            return [Group(self._copies.allocate(sum(p.nbytes for p in run)), run)]
        except torch.cuda.OutOfMemoryError:
            if len(run) == 1:
                raise
        half = len(run) // 2
        return self._allocate(run[:half]) + self._allocate(run[half:])

    def drop(self, which: Callable[[Group], bool] = lambda group: True) -> list[Piece]:
        dropped = [group for group in self._groups if which(group)]
        self._groups = [group for group in self._groups if group not in dropped]
        return [piece for group in dropped for piece in group.pieces]

    def drop_last(self, nbytes: int) -> list[Piece]:
        """Drop groups of at least `nbytes` from the end, or all that there are."""
        dropped: list[Piece] = []
        got = 0
        while self._groups and got < nbytes:
            group = self._groups.pop()
            got += group.nbytes
            dropped += group.pieces
        return dropped
