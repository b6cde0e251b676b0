"""When DeepCache reuses deep features (arXiv:2312.00858), and at which steps the UNet is computed in full. No torch."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

from sdxl_optim.sampling.facts import Facts
from sdxl_optim.sampling.loop import Counts, window
from sdxl_optim.sampling.note import Note
from sdxl_optim.settings import DeepCache, Settings
from sdxl_optim.techniques.base import Attachment, Counted, Decision, Forecast, PassTechnique, Site
from sdxl_optim.techniques.deepcache import reuse
from sdxl_optim.techniques.deepcache.calibration import full_steps_adaptive, is_worthwhile
from sdxl_optim.techniques.deepcache.positions import full_steps_nonuniform, full_steps_uniform
from sdxl_optim.wording import Text, joined, message

FEW_STEPS = 12


class DeepCacheTechnique(PassTechnique):
    key = "deepcache"
    feature = "DeepCache"

    def decide(self, settings: Settings, facts: Facts) -> Decision:
        deepcache, depth = settings.deepcache, facts.unet.depth
        if not deepcache.enabled:
            return Decision()
        if reason := facts.unet.why_not or facts.cannot.get(self.key):
            return self.refused(reason)
        if not facts.loop.foreseeable:
            return self.refused("this sampler's number of steps can't be foreseen")
        if deepcache.cache_branch_id >= depth:
            text = "branch {branch} is deeper than this model's UNet; allowed: {first} to {last}"
            return self.refused(message(text, branch=deepcache.cache_branch_id, first=0, last=depth - 1))
        notes: list[Note] = []
        inside = window(deepcache.start, deepcache.stop, facts.loop.n)
        if 0 < len(inside) < FEW_STEPS:
            text = "with {n} steps there is little to reuse and the picture changes much; use {enough} or more"
            notes.append(self._said(message(text, n=len(inside), enough=FEW_STEPS)))
        deepcache = self._calibrated(deepcache, facts, notes)
        cached = _cached_steps(deepcache, facts)
        if not cached:
            notes.append(self._said("with these settings every step is full and nothing is reused"))
            return Decision(notes=tuple(notes))
        share = facts.unet.share_up_to(deepcache.cache_branch_id)
        return Decision(deepcache, tuple(notes), cached, share)

    def _calibrated(self, deepcache: DeepCache, facts: Facts, notes: list[Note]) -> DeepCache:
        """As asked, or uniform where adaptive has no calibration to go by, or one that promises little."""
        if deepcache.mode != "adaptive":
            return deepcache
        reason = facts.no_calibration
        if facts.calibration is not None:
            inside = window(deepcache.start, deepcache.stop, facts.loop.n)
            uniform = full_steps_uniform(len(inside), deepcache.cache_interval)
            if facts.calibration.branch != deepcache.cache_branch_id:
                text = "the calibration is of branch {theirs}, not {ours}"
                reason = message(text, theirs=facts.calibration.branch, ours=deepcache.cache_branch_id)
            elif is_worthwhile(facts.calibration, [facts.timesteps[i] for i in inside], uniform):
                return deepcache
            else:
                reason = "the calibration promises too small a gain in this run"
        notes.append(self._said(joined(["full steps are uniform, not adaptive", ": ", reason or ""])))
        return replace(deepcache, mode="uniform")

    def _said(self, text: Text) -> Note:
        return Note(self.feature, text, refused=False)

    def forecast(self, config: DeepCache) -> Forecast:
        return reuse.Forecast(self.key)

    def attached(self, site: Site, config: DeepCache) -> AbstractContextManager[Attachment] | None:
        from sdxl_optim.techniques.deepcache.patch import deepcache_attached

        layout = site.layout()
        if config.cache_branch_id >= layout.depth:
            text = "branch {branch} is deeper than the next model's UNet"
            site.note(Note(self.feature, message(text, branch=config.cache_branch_id)))
            return None
        return deepcache_attached(layout, config.cache_branch_id, site.current, site)

    def planned(self, config: Any, steps: int, acting: int, first: int | None, counts: Counts | None) -> list[Text]:
        if counts is None or not counts.cached:
            return []
        return [message("{full} full and {cached} cached", full=counts.full, cached=counts.cached)]

    def happened(self, report: Counted) -> list[Text]:
        c = report.counts
        return [message("{full} full and {cached} cached", full=c.full, cached=c.cached)] if c.cached else []

    def measured(self, report: Counted) -> dict[str, Any]:
        return {"store_bytes": report.store_bytes}


def _cached_steps(deepcache: DeepCache, facts: Facts) -> frozenset[int]:
    inside = window(deepcache.start, deepcache.stop, facts.loop.n)
    if deepcache.mode == "uniform":
        full = full_steps_uniform(len(inside), deepcache.cache_interval)
    elif deepcache.mode == "adaptive":
        count = -(-len(inside) // deepcache.cache_interval)
        full = full_steps_adaptive(facts.calibration, [facts.timesteps[i] for i in inside], count)
    else:
        full = full_steps_nonuniform(len(inside), deepcache.cache_interval, deepcache.center, deepcache.power)
    return frozenset(i for k, i in enumerate(inside) if k not in full)
