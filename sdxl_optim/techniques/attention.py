"""When attention is computed by torch's scaled_dot_product_attention, where the host was started with another one. The
host changes it by its own means. No torch."""

from __future__ import annotations

from sdxl_optim.sampling.facts import RequestFacts
from sdxl_optim.settings import Settings
from sdxl_optim.techniques.base import Decision, RequestTechnique


class Attention(RequestTechnique):
    setting = "backend.attention"
    feature = "attention sdpa"

    def decide(self, settings: Settings, facts: RequestFacts) -> Decision:
        if settings.backend.attention == "host":
            return Decision()
        reason = facts.cannot.get(self.setting)
        return self.refused(reason) if reason else Decision(settings.backend.attention)
