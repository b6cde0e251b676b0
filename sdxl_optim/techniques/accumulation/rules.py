"""When half-precision products are summed up in half precision. No torch."""

from __future__ import annotations

from sdxl_optim.sampling.facts import RequestFacts
from sdxl_optim.settings import Settings
from sdxl_optim.techniques.base import Decision, RequestTechnique


class Fp16Accumulation(RequestTechnique):
    setting = "backend.fp16_accumulation"
    feature = "fp16 accumulation"

    def decide(self, settings: Settings, facts: RequestFacts) -> Decision:
        if not settings.backend.fp16_accumulation:
            return Decision()
        reason = facts.cannot.get(self.setting)
        return self.refused(reason) if reason else Decision(True)
