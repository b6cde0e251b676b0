"""When FreeU acts (arXiv:2309.11497). No torch."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from sdxl_optim.sampling.facts import Facts
from sdxl_optim.sampling.loop import Counts, window
from sdxl_optim.settings import FreeU, Settings
from sdxl_optim.techniques.base import Attachment, Counted, Decision, PassTechnique, Site
from sdxl_optim.wording import Text, message


class FreeUTechnique(PassTechnique):
    key = "freeu"
    feature = "FreeU"

    def decide(self, settings: Settings, facts: Facts) -> Decision:
        freeu = settings.freeu
        if not freeu.enabled:
            return Decision()
        if reason := facts.unet.why_not or facts.cannot.get(self.key):
            return self.refused(reason)
        if facts.unet.stages == 0:
            return self.refused("this model's UNet has no stage that it acts on")
        if facts.loop.foreseeable:
            return Decision(freeu, steps=window(freeu.start, freeu.stop, facts.loop.n))
        if (freeu.start, freeu.stop) == (0.0, 1.0):
            return Decision(freeu)
        return self.refused("this sampler's number of steps can't be foreseen, so a start/stop window can't be kept")

    def attached(self, site: Site, config: FreeU) -> AbstractContextManager[Attachment]:
        from sdxl_optim.techniques.freeu.patch import freeu_attached

        return freeu_attached(site.layout(), config, site.current)

    def planned(self, config: Any, steps: int, acting: int, first: int | None, counts: Counts | None) -> list[Text]:
        return ["FreeU" if counts is None or acting == steps else message("FreeU in {n} steps", n=acting)]

    def happened(self, report: Counted) -> list[Text]:
        calls = report.acted[self.key]
        return [message("FreeU in {n}", n=calls)] if calls else []

    def measured(self, report: Counted) -> dict[str, Any]:
        return {"freeu_calls": report.acted[self.key]}
