"""CFG cutoff: guidance is switched off late, and from then on only the cond rows are computed.

The host leaves the uncond rows out wherever a step drops them; nothing is put into the UNet.
"""

from __future__ import annotations

from typing import Any

from sdxl_optim.sampling.facts import Facts
from sdxl_optim.sampling.loop import Counts
from sdxl_optim.settings import Settings
from sdxl_optim.techniques.base import Decision, PassTechnique
from sdxl_optim.wording import Text, message


class CfgCutoffTechnique(PassTechnique):
    key = "cfg_cutoff"
    feature = "CFG cutoff"
    drops_uncond = True

    def decide(self, settings: Settings, facts: Facts) -> Decision:
        cutoff = settings.cfg_cutoff
        if not cutoff.enabled:
            return Decision()
        if reason := facts.cannot.get(self.key):
            return self.refused(reason)
        if facts.cfg_scale < 1:
            text = "below a CFG scale of {one} the picture is made of the unconditional rows as well"
            return self.refused(message(text, one=1))
        if facts.cfg_scale == 1:
            return Decision(cutoff)
        if not facts.loop.foreseeable:
            return self.refused("this sampler's number of steps can't be foreseen")
        return Decision(cutoff, steps=range(int(cutoff.stop * facts.loop.n), facts.loop.n))

    def planned(self, config: Any, steps: int, acting: int, first: int | None, counts: Counts | None) -> list[Text]:
        if not acting:
            return []
        return [message("guidance off after step {n}", n=first) if first else "guidance off"]
