"""How a UNet call is executed: which backend runs the calls of a pass. The backends themselves are in `backends/`. No
torch."""

from __future__ import annotations

from typing import Any

from sdxl_optim.sampling.facts import Facts
from sdxl_optim.sampling.loop import Counts
from sdxl_optim.sampling.note import Note
from sdxl_optim.settings import Settings
from sdxl_optim.techniques.base import Counted, Decision, PassTechnique
from sdxl_optim.wording import Text, joined, message, name


class BackendTechnique(PassTechnique):
    """Its config is the backend's name. The host puts the calls into its hands (`backends/execution.py`)."""

    key = "backend"
    by_step = False

    def decide(self, settings: Settings, facts: Facts) -> Decision:
        wanted = settings.backend.name
        if wanted == "eager":
            return Decision()
        if reason := facts.cannot.get(self.key):
            text = joined([reason, "the calls ran eagerly"], by="; ")
            return Decision(notes=(Note(message("backend {name}", name=wanted), text),))
        return Decision(wanted)

    def planned(self, config: Any, steps: int, acting: int, first: int | None, counts: Counts | None) -> list[Text]:
        return [name(config)] if counts is not None else []

    def happened(self, report: Counted) -> list[Text]:
        done = report.execution
        words: list[Text] = []
        if done.replays:
            words.append(message("{n} by {backend}", n=done.replays, backend=done.backend))
        if done.fallbacks:
            words.append(message("{n} eager instead", n=done.fallbacks))
        return words
