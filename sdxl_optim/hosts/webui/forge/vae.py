"""The tiny decoder is the host's own option here, too; precision and tiles are Forge's own affair."""

from __future__ import annotations

from collections.abc import Callable

from sdxl_optim.hosts.webui import vae
from sdxl_optim.hosts.webui.forge.memory import TILING
from sdxl_optim.hosts.webui.forge.memory import VAE as PRECISION
from sdxl_optim.planning.plan import Note
from sdxl_optim.report import JobReport
from sdxl_optim.settings import Settings, Vae


def refused(settings: Vae) -> list[Note]:
    notes = []
    if settings.precision != "host":
        notes.append(Note("VAE precision", PRECISION))
    if settings.tiling:
        notes.append(Note("VAE tiling", TILING))
    return notes


def foreseen_decoder(settings: Settings) -> tuple[list[str], list[Note]]:
    """What will decode, in words, and what there is to say of it; without loading or fetching anything."""
    facts, notes = vae.foreseen_decoder(settings)
    facts = [fact for fact in facts if fact != vae.IN_TILES]
    return facts, [*notes, *refused(settings.vae)]


def wants_fix(settings: Vae) -> str | None:
    """No other VAE is loaded on account of the precision, which is refused."""
    return None


class VaePatch:
    """Patches nothing: puts what is refused into the report."""

    def __init__(self, settings: Settings, report: JobReport, free_others: Callable[[], bool]):
        self._settings, self._report = settings.vae, report

    def follow(self) -> None:
        for note in refused(self._settings):
            self._report.add_note(note)

    def tell(self) -> None:
        """There is nothing to tell."""

    def close(self) -> None:
        """There is nothing to undo."""
