"""The host's memory monitor reads the peaks of its whole time, however often torch's are begun anew meanwhile."""

from sdxl_optim.host.webui.peaks import keep_peaks


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
