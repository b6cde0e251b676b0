"""Peaks of memory by stage of a request: encode, denoise, decode."""

from __future__ import annotations

from modules import devices, shared
from sdxl_optim.hosts.webui.observers import RequestObserver
from sdxl_optim.hosts.webui.peaks import HighWater
from sdxl_optim.report import JobReport

ENCODE, DENOISE, UPSCALE, DECODE = "encode", "denoise", "upscale", "decode"


class Stages(RequestObserver):
    """Puts the peak of each stage into the report; the next one begins where it ends. Nothing is measured but on
    CUDA."""

    def __init__(self, report: JobReport):
        self._report = report
        self._water = HighWater(devices.device, shared.mem_mon).start() if devices.device.type == "cuda" else None

    def loop_begins(self, p) -> None:
        self._over(UPSCALE if p.is_hr_pass else ENCODE)

    def loop_ends(self, p) -> None:
        self._over(DENOISE)

    def decode_ends(self, p) -> None:
        self._over(DECODE)

    def _over(self, stage: str) -> None:
        if self._water is not None:
            self._report.add_peak(stage, *self._water.read())
            self._water.start()
