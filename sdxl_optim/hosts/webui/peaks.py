"""Measuring peaks of memory without spoiling the numbers of the host's own memory monitor, nor those of each other."""

from __future__ import annotations

import weakref
from contextlib import ExitStack

import torch

from sdxl_optim.unet.patching import replaced

_before: dict[str, int] = {}  # peaks that the host's monitor has yet to read
_open: weakref.WeakSet[HighWater] = weakref.WeakSet()


class HighWater:
    """The peak in bytes from `start` to `read`, also where others began anew in between."""

    def __init__(self, device: torch.device, monitor):
        """monitor: the host's, as shared.mem_mon."""
        self._device, self._monitor = device, monitor
        self.allocated = self.reserved = 0

    def start(self) -> HighWater:
        begin_anew(self._device, self._monitor)
        self.allocated = self.reserved = 0
        _open.add(self)
        return self

    def read(self) -> tuple[int, int]:
        """(allocated, reserved)."""
        self._rise()
        return self.allocated, self.reserved

    def _rise(self) -> None:
        self.allocated = max(self.allocated, torch.cuda.max_memory_allocated(self._device))
        self.reserved = max(self.reserved, torch.cuda.max_memory_reserved(self._device))


def begin_anew(device: torch.device, monitor) -> None:
    """torch's peaks start from what is taken at present. Whoever measures over a longer time has seen the old ones."""
    for high_water in list(_open):
        high_water._rise()
    if monitor.run_flag.is_set():
        keep_peaks(monitor, torch.cuda.memory_stats(device))
    torch.cuda.reset_peak_memory_stats(device)


def keep_peaks(monitor, stats: dict[str, int]) -> None:
    """torch's peaks are about to begin anew while the host's monitor runs: it shall read the ones before them, too.

    The monitor is read once, at the end of the page's request; afterwards nothing of this is left on it.
    """
    wrapped = bool(_before)
    for name, stat in (("active_peak", "active_bytes.all.peak"), ("reserved_peak", "reserved_bytes.all.peak")):
        _before[name] = max(_before.get(name, 0), stats[stat])
    if wrapped:
        return
    undo = ExitStack()

    def make(original):
        def read():
            undo.close()
            data = original()
            data.update({name: max(data[name], peak) for name, peak in _before.items()})
            _before.clear()
            return data

        return read

    undo.enter_context(replaced(monitor, "read", make))
