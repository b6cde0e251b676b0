"""How much memory a device has, how much of it is taken, and how much the parts' calls need."""

from __future__ import annotations

from collections.abc import Hashable

import torch

MARGIN = 0.03  # of what is free, left for what torch does not count (assumed: workspaces of libraries, other processes)


class Meter:
    """Bytes on a CUDA device. On any other there is no limit, and nothing is measured."""

    def __init__(self, device: torch.device, budget: float = 0.0):
        """budget: GB of 10^9 bytes that may be filled, 0 for all that is free."""
        self.device = torch.device(device)
        self.budget = budget
        self.measures = self.device.type == "cuda"

    def limit(self) -> int | None:
        """What all tensors may take, or None for no limit."""
        if self.budget or not self.measures:
            return int(self.budget * 1e9) or None
        free, _ = torch.cuda.mem_get_info(self.device)
        return int((free + torch.cuda.memory_reserved(self.device)) * (1 - MARGIN))

    def used(self) -> int:
        return torch.cuda.memory_allocated(self.device) if self.measures else 0

    def peak(self) -> int:
        """The highest `used` since the last `reset`."""
        return torch.cuda.max_memory_allocated(self.device) if self.measures else 0

    def reset(self) -> None:
        if self.measures:
            torch.cuda.reset_peak_memory_stats(self.device)


class CallNeeds:
    """Bytes that a call of each part needs beside the weights: a guess, until calls for the same `key` are measured.

    key: whatever the need depends on, such as size and batch.
    """

    def __init__(self, meter: Meter, guess: dict[str, int] | None = None):
        """guess: by part."""
        self.key: Hashable = None
        self.guess: dict[str, int] = dict(guess or {})
        self._meter = meter
        self._measured: dict[tuple[str, Hashable], int] = {}
        self._measuring: tuple[str, Hashable, int] | None = None  # part, key, and what was used when the call began

    @property
    def measuring(self) -> bool:
        return self._measuring is not None

    def of(self, part: str, at_least_guess: bool = False) -> int:
        guess = self.guess.get(part, 0)
        need = self._measured.get((part, self.key), guess)
        return max(need, guess) if at_least_guess else need

    def begin(self, part: str) -> None:
        """A call of `part` begins."""
        if self._meter.measures:
            self._meter.reset()
            self._measuring = part, self.key, self._meter.used()

    def end(self) -> None:
        """The call is over, if one is under way: keep the highest need that was seen."""
        if self._measuring is not None:
            part, key, before = self._measuring
            self._measured[part, key] = max(self._meter.peak() - before, self._measured.get((part, key), 0))
            self._measuring = None

    def end_before(self, part: str) -> bool:
        """A call of `part` is about to begin, which ends the one that is measured. Returns whether that was the first
        one of the same part and key. (Of later ones in a row, measuring goes on: the last one ends it.)"""
        if self._measuring is None:
            return False
        last, key, _ = self._measuring
        same, known = (last, key) == (part, self.key), (last, key) in self._measured
        if not (same and known):
            self.end()
        return same and not known

    def raise_by(self, factor: float, part: str, key: Hashable) -> None:
        """Memory ran out in a call of `part`: it needs more than was known."""
        self._measured[part, key] = int(self._measured.get((part, key), self.guess.get(part, 0)) * factor)
