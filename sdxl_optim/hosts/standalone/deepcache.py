"""DeepCache (arXiv:2312.00858) by the `deepcache` package, told by the schedule which calls are cached.

The package decides by the number of the timestep alone, so by itself it knows neither a window nor a solver
with two calls a step, and its stored tensors keep the uncond rows that a CFG cutoff drops. Here it does the
wrapping and the branches.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from DeepCache import DeepCacheSDHelper
from diffusers import DiffusionPipeline

from sdxl_optim.hosts.standalone.site import PipelineSite
from sdxl_optim.sampling.call import UNetCall
from sdxl_optim.settings import DeepCache
from sdxl_optim.techniques.deepcache.reuse import Stored, usable_rows

KEY = "deepcache"


class ScheduledDeepCache(DeepCacheSDHelper):
    """The package's helper for one pass of one pipeline. The store has one entry for each place in a step."""

    def __init__(self, pipe: DiffusionPipeline, settings: DeepCache):
        super().__init__(pipe)
        # Any mode but "uniform" leaves the package without a rule of its own for full steps.
        self.set_params(settings.cache_interval, settings.cache_branch_id, skip_mode="scheduled")
        self._branch = settings.cache_branch_id
        self.cached = False
        self.peak_bytes = 0
        self._stores: dict[Hashable, tuple[Stored, dict]] = {}
        self._originals: list[tuple[torch.nn.Module, Callable]] = []  # each wrapped module, and its forward before

    def begin(self, call: UNetCall) -> UNetCall:
        """A UNet call begins: the call with what is reused in it."""
        may_reuse = call.place is not None and call.does(KEY)
        cached = self.announce(call.place, may_reuse, call.rows, call.cond_rows, call.shape)
        skipped = self._skipped_layers() if cached else frozenset()
        return replace(call, cached=cached, skipped=skipped).with_operation(KEY, self._branch, acts=cached)

    def announce(self, place: Hashable, want_cached: bool, rows: int, cond_rows: int, shape: tuple) -> bool:
        """Announce the next UNet call and tell whether it runs cached."""
        self._measure()
        stored, outputs = self._stores.get(place, (None, {}))
        usable = usable_rows(stored, rows, cond_rows, model=0, shape=shape) if want_cached else None
        self.cached = usable is not None
        if usable is None or stored is None:
            stored, outputs = Stored(rows, 0, shape), {}
        elif usable < stored.rows:
            stored, outputs = (
                Stored(rows, 0, shape),
                _last_rows(outputs, usable),
            )  # diffusers puts the cond rows last
        self._stores[place] = stored, outputs
        self.cached_output = outputs
        return self.cached

    def disable(self) -> None:
        self._measure()
        super().disable()
        self._stores.clear()

    def wrap_unet_forward(self) -> None:
        # The package's wrapper looks the timestep up, which waits for the device and is of no use here.
        self.function_dict["unet_forward"] = self.pipe.unet.forward

    def wrap_block_forward(self, block, block_name: str, block_i: int, layer_i: int, blocktype: str = "down") -> None:
        if block is not None:  # the package asks for a middle block, which distilled UNets may lack
            self._originals.append((block, block.forward))
            super().wrap_block_forward(block, block_name, block_i, layer_i, blocktype)

    def unwrap_modules(self) -> None:
        while self._originals:
            block, forward = self._originals.pop()
            block.forward = forward

    def is_skip_step(self, block_i: int, layer_i: int, blocktype: str = "down") -> bool:
        return self.cached and super().is_skip_step(block_i, layer_i, blocktype)

    def _skipped_layers(self) -> frozenset[tuple[int, int]]:
        """(up block, resnet) of the layers of the up blocks, counted as diffusers does, that keep still."""
        blocks = self.pipe.unet.up_blocks
        return frozenset(
            (i, k)
            for i, block in enumerate(blocks)
            for k in range(len(block.resnets))
            if self.is_skip_step(len(blocks) - i - 1, len(block.resnets) - k - 1, "up")
        )

    def _measure(self) -> None:
        if not self.cached:
            tensors = [t for _, outputs in self._stores.values() for t in _tensors(outputs)]
            storages = {s.data_ptr(): s.nbytes() for s in (t.untyped_storage() for t in tensors)}
            self.peak_bytes = max(self.peak_bytes, sum(storages.values()))


@contextmanager
def deepcache_attached(site: PipelineSite, settings: DeepCache) -> Iterator[ScheduledDeepCache]:
    """Context manager: DeepCache in the pipeline's UNet calls, as their values say."""
    helper = ScheduledDeepCache(site.pipe, settings)
    helper.enable()
    try:
        yield helper
    finally:
        helper.disable()
        site.report.store_bytes = max(site.report.store_bytes, helper.peak_bytes)


def _last_rows(value, rows: int):
    """`value`, a structure of tensors [B, …], with their last rows alone."""
    if isinstance(value, torch.Tensor):
        return value[-rows:]
    if isinstance(value, dict):
        return {k: _last_rows(v, rows) for k, v in value.items()}
    return type(value)(_last_rows(v, rows) for v in value)


def _tensors(value):
    if isinstance(value, torch.Tensor):
        yield value
    else:
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _tensors(inner)
