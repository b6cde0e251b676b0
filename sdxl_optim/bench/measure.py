"""Seconds, peak memory and similarity."""

from __future__ import annotations

import threading
import time

import numpy as np
import torch


class Stopwatch:
    """Adds up seconds by stage. A lap ends what came before it, on the device too."""

    def __init__(self, device: torch.device | str = "cpu"):
        self.seconds: dict[str, float] = {}
        self._device = torch.device(device)
        self._last = self._now()

    def lap(self, stage: str) -> float:
        """Count the time since the last lap to `stage`; returns it."""
        now = self._now()
        elapsed, self._last = now - self._last, now
        self.seconds[stage] = self.seconds.get(stage, 0.0) + elapsed
        return elapsed

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


class PeakMemory:
    """Context manager: the peak of memory in bytes while it is entered.

    On CUDA what torch allocated; elsewhere the resident memory of the process, looked at every `interval`
    seconds.
    """

    def __init__(self, device: torch.device | str = "cpu", interval: float = 0.01):
        self._cuda = torch.device(device).type == "cuda"
        self._device, self._interval = device, interval
        self.kind = "allocated on the GPU" if self._cuda else "of the process"
        self.bytes = 0

    def __enter__(self) -> PeakMemory:
        if self._cuda:
            torch.cuda.reset_peak_memory_stats(self._device)
        else:
            import psutil

            self._process = psutil.Process()
            self._done = threading.Event()
            self._watcher = threading.Thread(target=self._watch, daemon=True)
            self._watcher.start()
        return self

    def __exit__(self, *error) -> None:
        if self._cuda:
            self.bytes = torch.cuda.max_memory_allocated(self._device)
        else:
            self._done.set()
            self._watcher.join()

    def _watch(self) -> None:
        while True:
            self.bytes = max(self.bytes, self._process.memory_info().rss)
            if self._done.wait(self._interval):
                return


def similarity(a, b) -> float | None:
    """SSIM of two pictures of one size, 1 where they are equal; None without scikit-image."""
    try:
        from skimage.metrics import structural_similarity
    except ImportError:
        return None
    return float(structural_similarity(np.asarray(a), np.asarray(b), channel_axis=2))
