"""The tiny decoder is the host's own option here, too; precision and tiles are Forge's own affair."""

from __future__ import annotations

from collections.abc import Callable

from sdxl_optim.planning.plan import RequestPlan
from sdxl_optim.report import JobReport
from sdxl_optim.settings import Vae


def wants_fix(settings: Vae) -> str | None:
    """No other VAE is loaded on account of the precision, which is refused."""
    return None


class VaePatch:
    """Patches nothing."""

    def __init__(self, report: JobReport, free_others: Callable[[], bool]):
        """Takes what the WebUI's takes."""

    def follow(self, plan: RequestPlan) -> None:
        """There is nothing to attach."""

    def report(self) -> None:
        """There is nothing to report."""

    def close(self) -> None:
        """There is nothing to undo."""
