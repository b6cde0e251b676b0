"""Measuring peaks of memory without spoiling the numbers of the host's own memory monitor, nor those of each other."""

from __future__ import annotations

from contextlib import ExitStack

import torch

from sdxl_optim.bench.measure import CudaPeaks
from sdxl_optim.unet.patching import replaced


class HighWater(CudaPeaks):
    """torch's peaks, which the host's memory monitor (shared.mem_mon) reads over its whole time, too."""

    def __init__(self, device: torch.device, monitor):
        def before_reset():
            if monitor.run_flag.is_set():
                keep_peaks(monitor, torch.cuda.memory_stats(device))

        super().__init__(device, before_reset)


def keep_peaks(monitor, stats: dict[str, int]) -> None:
    """torch's peaks are about to be reset while the host's monitor runs: it shall read the ones before them, too.

    The monitor is read once, at the end of the page's request; afterwards nothing of this is left on it.
    """
    kept: dict[str, int] | None = getattr(monitor.read, "kept", None)
    wrapped = kept is not None
    kept = {} if kept is None else kept
    for name, stat in (("active_peak", "active_bytes.all.peak"), ("reserved_peak", "reserved_bytes.all.peak")):
        kept[name] = max(kept.get(name, 0), stats[stat])
    if wrapped:
        return
    undo = ExitStack()

    def make(original):
        def read():
            undo.close()
            data = original()
            data.update({name: max(data[name], peak) for name, peak in kept.items()})
            return data

        return read

    undo.enter_context(replaced(monitor, "read", make))
    monitor.read.kept = kept  # for the next who resets them
