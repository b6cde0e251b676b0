"""Seconds and peaks of memory."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable
from typing import ClassVar

import torch


def device_name(device: torch.device) -> str:
    """The GPU's name, or CPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()


class Stopwatch:
    """Adds up seconds by stage. A lap ends what came before it, on the device too. `clock` returns seconds."""

    def __init__(self, device: torch.device | str = "cpu", clock: Callable[[], float] = time.perf_counter):
        self.seconds: dict[str, float] = {}
        self._device, self._clock = torch.device(device), clock
        self._began = self._last = self._now()

    def lap(self, stage: str) -> float:
        """Count the time since the last lap to `stage`; returns it."""
        elapsed = self.skip()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + elapsed
        return elapsed

    def skip(self) -> float:
        """Leave the time since the last lap out of every stage; returns it."""
        now = self._now()
        elapsed, self._last = now - self._last, now
        return elapsed

    def total(self) -> float:
        """Seconds since the stopwatch was made, whatever the laps."""
        return self._now() - self._began

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return self._clock()


class CudaPeaks:
    """torch's peaks on one device from `start` to `read`, in bytes, also where others start in between.

    before_reset: called before torch's counters are reset, for whoever else reads them.
    """

    _open: ClassVar[weakref.WeakSet[CudaPeaks]] = weakref.WeakSet()

    def __init__(self, device: torch.device | str, before_reset: Callable[[], None] = lambda: None):
        self._device, self._before_reset = device, before_reset
        self.allocated = self.reserved = 0

    def start(self) -> CudaPeaks:
        for peaks in list(self._open):
            peaks.read()
        self._before_reset()
        torch.cuda.reset_peak_memory_stats(self._device)
        self.allocated = self.reserved = 0
        self._open.add(self)
        return self

    def read(self) -> tuple[int, int]:
        """(allocated, reserved)."""
        self.allocated = max(self.allocated, torch.cuda.max_memory_allocated(self._device))
        self.reserved = max(self.reserved, torch.cuda.max_memory_reserved(self._device))
        return self.allocated, self.reserved


class PeakMemory:
    """Context manager: the peak of memory in bytes while it is entered.

    On CUDA what torch allocated (and `reserved_bytes`, what it took from the driver); elsewhere the resident memory of
    the process, which `resident` returns and which is looked at every `interval` seconds, first on entry and last on
    exit.
    """

    def __init__(
        self,
        device: torch.device | str = "cpu",
        interval: float = 0.01,
        resident: Callable[[], int] | None = None,
    ):
        self.on_cuda = torch.device(device).type == "cuda"
        self.kind = "allocated on the GPU" if self.on_cuda else "of the process"
        self.bytes = 0
        self.reserved_bytes: int | None = None
        self._peaks = CudaPeaks(device) if self.on_cuda else None
        self._interval, self._resident = interval, resident

    def __enter__(self) -> PeakMemory:
        if self._peaks is not None:
            self._peaks.start()
            return self
        self._resident = self._resident or process_memory()
        self._look()
        self._done = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()
        return self

    def __exit__(self, *error) -> None:
        if self._peaks is not None:
            self.bytes, self.reserved_bytes = self._peaks.read()
            return
        self._done.set()
        self._watcher.join()
        self._look()

    def _watch(self) -> None:
        while not self._done.wait(self._interval):
            self._look()

    def _look(self) -> None:
        if self._resident is not None:
            self.bytes = max(self.bytes, self._resident())


def process_memory() -> Callable[[], int]:
    """A function that returns the resident memory of this process in bytes. Takes psutil."""
    import psutil

    process = psutil.Process()
    return lambda: process.memory_info().rss
