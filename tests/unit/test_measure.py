from __future__ import annotations

import threading

import pytest
import torch

from sdxl_optim.bench.measure import PeakMemory, Stopwatch, process_memory


class Clock:
    """Seconds that pass when told to."""

    def __init__(self):
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_laps_add_up_by_stage():
    clock = Clock()
    watch = Stopwatch(clock=clock)
    clock.now += 2
    assert watch.lap("sampling") == 2
    assert watch.lap("decode") == 0
    clock.now += 1
    watch.lap("sampling")
    assert watch.seconds == {"sampling": 3, "decode": 0}
    assert sum(watch.seconds.values()) == watch.total() == 3


def test_time_that_is_skipped_is_no_stages():
    clock = Clock()
    watch = Stopwatch(clock=clock)
    clock.now += 2
    assert watch.skip() == 2
    clock.now += 5
    watch.lap("decode")
    assert watch.seconds == {"decode": 5}
    assert watch.total() == 7


def test_peak_memory_sees_what_was_freed_again():
    """The middle value is there while the watcher alone looks."""
    looks, seen = iter([10, 90]), threading.Event()

    def resident() -> int:
        value = next(looks, 20)
        if value == 20:
            seen.set()
        return value

    with PeakMemory(interval=0.001, resident=resident) as busy:
        assert seen.wait(10)
    assert busy.bytes == 90
    with PeakMemory(interval=60, resident=iter([10, 30]).__next__) as idle:
        pass
    assert idle.bytes == 30
    assert idle.reserved_bytes is None


def test_the_memory_of_the_process_is_what_it_holds():
    pytest.importorskip("psutil")
    resident = process_memory()
    before = resident()
    block = torch.ones(2**26)  # 256 MiB
    assert resident() > before + 200 * 2**20
    del block
