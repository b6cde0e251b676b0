"""When fp32 products are computed in TensorFloat-32. No torch."""

from __future__ import annotations

from sdxl_optim.sampling.facts import RequestFacts
from sdxl_optim.settings import Settings
from sdxl_optim.techniques.base import Decision, RequestTechnique


class Tf32(RequestTechnique):
    """Its config is (cuDNN's switch, the matrix products' switch), each host, on or off. It acts on fp32 alone, and is
    without effect on what has no tensor cores."""

    setting = "memory.cudnn_tf32"
    feature = "TF32"

    def decide(self, settings: Settings, facts: RequestFacts) -> Decision:
        wanted = (settings.memory.cudnn_tf32, settings.memory.matmul_tf32)
        if wanted == ("host", "host"):
            return Decision()
        reason = facts.cannot.get(self.setting)
        return self.refused(reason) if reason else Decision(wanted)
