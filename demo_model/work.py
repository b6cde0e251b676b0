"""The work of a picture in floating-point operations, counted on the networks themselves."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode

from sdxl_optim.hosts.standalone.deepcache import ScheduledDeepCache
from sdxl_optim.hosts.standalone.generate import Models
from sdxl_optim.planning.plan import Plan
from sdxl_optim.settings import DeepCache


class Work:
    """GFLOP of one picture by these models."""

    def __init__(self, models: Models):
        self._pipe, self._full = models.base, None
        self._cached: dict[int, float] = {}
        x = torch.zeros(1, 4, 32, 32, device=models.base.device)
        self._decoders = {
            "tiny": self._count(lambda: models.tiny_vae.decode(x)),
            "full": self._count(lambda: models.base.vae.decode(x)),
        }

    @staticmethod
    def _count(call) -> float:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            call()
        return counter.get_total_flops()

    def _row(self) -> float:
        """Of one row through the UNet as it is."""
        unet, device = self._pipe.unet, self._pipe.device
        context = torch.zeros(1, 77, unet.config.cross_attention_dim, device=device)
        numbers = {"text_embeds": context[:, 0, :256], "time_ids": torch.zeros(1, 6, device=device)}
        x = torch.zeros(1, 4, 32, 32, device=device)
        return self._count(lambda: unet(x, 1, context, added_cond_kwargs=numbers))

    def _cached_row(self, branch: int) -> float:
        if branch not in self._cached:
            helper = ScheduledDeepCache(self._pipe, DeepCache(enabled=True, cache_branch_id=branch))
            helper.enable()
            try:
                for cached in (False, True):
                    helper.announce(0, cached, 1, 1, ())
                    self._cached[branch] = self._row()
            finally:
                helper.disable()
        return self._cached[branch]

    def decoding(self, decoder: str) -> float:
        """GFLOP for one picture by the decoder, full or tiny."""
        return self._decoders[decoder] / 1e9

    def sampling(self, plan: Plan, steps: int, with_uncond: bool) -> float:
        """GFLOP of the UNet for one picture by `plan`."""
        self._full = self._full or self._row()
        total = 0.0
        for i in range(steps):
            step = plan.step(i)
            rows = 2 if with_uncond and not step.drops_uncond else 1
            row = self._cached_row(plan.config("deepcache").cache_branch_id) if "deepcache" in step else self._full
            total += rows * row
        return total / 1e9
