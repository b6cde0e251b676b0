"""When weights wait in main memory, and when they are stored in 8 bits. No torch."""

from __future__ import annotations

from typing import Any

from sdxl_optim.sampling.facts import RequestFacts
from sdxl_optim.settings import Settings
from sdxl_optim.techniques.base import Decision, RequestTechnique
from sdxl_optim.wording import Text, joined


class Weights(RequestTechnique):
    """Its config is the format in which the UNet's weights are stored."""

    setting = "memory.weights"
    feature = "Memory weights"

    def decide(self, settings: Settings, facts: RequestFacts) -> Decision:
        if settings.memory.weights == "host":
            return Decision()
        reason = facts.cannot.get(self.setting)
        return self.refused(reason) if reason else Decision(settings.memory.weights)

    def planned(self, config: Any) -> list[Text]:
        return ["UNet in fp8"]


class Offload(RequestTechnique):
    """Its config is the offload policy's name."""

    setting = "memory.offload"
    feature = "Memory offload"

    def decide(self, settings: Settings, facts: RequestFacts) -> Decision:
        if settings.memory.offload == "host":
            return Decision()
        if reason := facts.cannot.get(self.setting):
            return self.refused(reason)
        notes = [self.said("there is no GPU here, so nothing is saved")] if facts.device == "cpu" else []
        if said := facts.said.get(self.setting):
            notes.append(self.said(said))
        return Decision(settings.memory.offload, tuple(notes))

    def planned(self, config: Any) -> list[Text]:
        return [joined([config, " ", "offload"])]
