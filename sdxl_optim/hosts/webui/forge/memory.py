"""Where the weights lie is Forge's own affair."""

from __future__ import annotations

from sdxl_optim.report import JobReport
from sdxl_optim.settings import Memory


class WeightsOnForge:
    """Nothing is placed."""

    def undo_if_changed(self, memory: Memory) -> None: ...

    def begin(self, p, job) -> None: ...

    def apply(self, p, job) -> None: ...

    def before_decode(self, latents) -> None: ...

    def free_others(self) -> bool:
        return False

    def report_to(self, report: JobReport) -> None: ...

    def model_loaded(self, model) -> None: ...


weights = WeightsOnForge()


def cheap_previews(job) -> None:
    """Previews stay as they are."""
