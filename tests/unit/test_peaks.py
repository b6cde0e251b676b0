"""The host's memory monitor reads the peaks of its whole time, however often torch's are begun anew meanwhile."""

from threading import Event
from types import SimpleNamespace

import pytest
import torch

from sdxl_optim.hosts.webui.peaks import HighWater, keep_peaks


class Monitor:
    """As the host's: `read` takes torch's peaks as they are."""

    def __init__(self):
        self.stats = {}

    def read(self):
        return {"active_peak": self.stats["active"], "reserved_peak": self.stats["reserved"], "free": 1}


def stats(active, reserved):
    return {"active_bytes.all.peak": active, "reserved_bytes.all.peak": reserved}


def test_the_greatest_of_all_is_read_and_nothing_is_left():
    monitor = Monitor()
    keep_peaks(monitor, stats(50, 60))
    keep_peaks(monitor, stats(90, 55))
    keep_peaks(monitor, stats(10, 20))
    monitor.stats = {"active": 30, "reserved": 70}
    assert monitor.read() == {"active_peak": 90, "reserved_peak": 70, "free": 1}
    assert list(vars(monitor)) == ["stats"]
    assert monitor.read()["active_peak"] == 30


def test_the_next_request_begins_without_the_peaks_of_the_last():
    monitor = Monitor()
    for peak in (80, 5):
        keep_peaks(monitor, stats(peak, peak))
        monitor.stats = {"active": 1, "reserved": 1}
        assert monitor.read()["active_peak"] == peak


class Cuda:
    """torch.cuda's counters of one device."""

    def __init__(self):
        self.now = self.peak = 0

    def use(self, nbytes: int) -> None:
        self.now = nbytes
        self.peak = max(self.peak, nbytes)

    def reset(self, device) -> None:
        self.peak = self.now


@pytest.fixture
def cuda(monkeypatch):
    cuda = Cuda()
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: cuda.peak)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: cuda.peak + 5)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", cuda.reset)
    return cuda


def test_those_who_measure_do_not_disturb_each_other(cuda):
    """A request, and a stage within it that begins anew."""
    monitor = SimpleNamespace(run_flag=Event())
    cuda.use(70)
    request = HighWater("cuda", monitor).start()
    cuda.use(90)
    cuda.use(20)
    stage = HighWater("cuda", monitor).start()
    cuda.use(40)
    assert stage.read() == (40, 45)
    stage.start()
    assert stage.read() == (40, 45)  # what is there as it begins counts
    cuda.use(10)
    assert stage.start().read() == (10, 15)
    assert request.read() == (90, 95)
