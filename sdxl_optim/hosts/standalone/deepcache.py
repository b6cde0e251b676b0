"""DeepCache (arXiv:2312.00858) by the `deepcache` package, told by the schedule which calls are cached.

The package decides by the number of the timestep alone, so by itself it knows neither a window nor a solver
with two calls a step, and its stored tensors keep the uncond rows that a CFG cutoff drops. Here it does the
wrapping and the branches.
"""

from __future__ import annotations

import torch
from DeepCache import DeepCacheSDHelper
from diffusers import DiffusionPipeline

from sdxl_optim.sampling.loop import Stored, usable_rows
from sdxl_optim.settings import DeepCache


class ScheduledDeepCache(DeepCacheSDHelper):
    """The package's helper for one pass of one pipeline. The store has one entry for each place in a step."""

    def __init__(self, pipe: DiffusionPipeline, settings: DeepCache):
        super().__init__(pipe)
        # Any mode but "uniform" leaves the package without a rule of its own for full steps.
        self.set_params(settings.cache_interval, settings.cache_branch_id, skip_mode="scheduled")
        self.cached = False
        self.peak_bytes = 0
        self._stores: dict[int, tuple[Stored, dict]] = {}

    def begin(self, place: int, want_cached: bool, rows: int, cond_rows: int, shape: tuple) -> bool:
        """Announce the next UNet call and tell whether it runs cached."""
        self._measure()
        stored, outputs = self._stores.get(place, (None, {}))
        usable = usable_rows(stored, rows, cond_rows, model=0, shape=shape) if want_cached else None
        self.cached = usable is not None
        if not self.cached:
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

    def is_skip_step(self, block_i: int, layer_i: int, blocktype: str = "down") -> bool:
        return self.cached and super().is_skip_step(block_i, layer_i, blocktype)

    def skips(self, up_block: int, resnet: int) -> bool:
        """Whether a layer of an up block, counted as diffusers does, keeps still in the call now running."""
        blocks = self.pipe.unet.up_blocks
        layers = len(blocks[up_block].resnets)
        return self.is_skip_step(len(blocks) - up_block - 1, layers - resnet - 1, "up")

    def _measure(self) -> None:
        if not self.cached:
            tensors = [t for _, outputs in self._stores.values() for t in _tensors(outputs)]
            storages = {s.data_ptr(): s.nbytes() for s in (t.untyped_storage() for t in tensors)}
            self.peak_bytes = max(self.peak_bytes, sum(storages.values()))


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
