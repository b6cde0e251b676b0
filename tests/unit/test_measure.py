from __future__ import annotations

import time

import numpy as np
import pytest

pytest.importorskip("psutil")

from sdxl_optim.bench.measure import PeakMemory, Stopwatch, similarity


def test_laps_add_up_by_stage():
    watch, began = Stopwatch(), time.perf_counter()
    time.sleep(0.02)
    first = watch.lap("sampling")
    watch.lap("decode")
    time.sleep(0.01)
    watch.lap("sampling")
    assert 0.02 <= first < watch.seconds["sampling"]
    assert watch.seconds["sampling"] >= 0.03
    assert sum(watch.seconds.values()) == pytest.approx(time.perf_counter() - began, abs=0.01)


def test_peak_memory_sees_what_was_freed_again():
    with PeakMemory() as idle:
        time.sleep(0.05)
    with PeakMemory() as busy:
        block = np.ones(2**25)  # 256 MiB
        time.sleep(0.05)
        del block
    assert busy.bytes > idle.bytes + 200 * 2**20


def test_similarity_is_one_for_equal_pictures_alone():
    pytest.importorskip("skimage")
    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    assert similarity(picture, picture) == pytest.approx(1)
    assert similarity(picture, 255 - picture) < 0.5
