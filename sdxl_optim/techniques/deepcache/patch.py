"""DeepCache (arXiv:2312.00858) on a UNet of the ldm/sgm layout: the blocks deeper than a branch keep still on
cached steps.

Branches are counted as the `deepcache` package does: branch k = 3 * block + layer, which in this layout is simply
the input block whose skip connection is the last one still computed. (The paper counts skip branches from 1 and per
down block.)
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import ExitStack, contextmanager

import torch

from sdxl_optim.sampling.loop import Stored, usable_rows
from sdxl_optim.unet.layout import Layout
from sdxl_optim.unet.patching import replaced


class DeepCacheStore:
    """The stored deep features of one UNet, and what the UNet call now running does with them.

    There is one entry for each key (a call's place in its step and its part, where the host splits it), so their
    number is bounded by the calls of one step.
    """

    def __init__(self, layout: Layout, branch: int):
        self.branch = branch
        self.first_skipped = branch + 1
        self.keeper = (
            2 * layout.depth - 1 - branch
        )  # the last block that cached steps skip; its output is what is stored
        self.disabled: str | None = None  # the reason, once something was seen that can't be served
        self.peak_bytes = 0
        self._entries: dict[Hashable, tuple[Stored, torch.Tensor]] = {}
        self._key: Hashable = None
        self._stored: Stored | None = None
        self._reused: torch.Tensor | None = None
        self._keeper_ran = False
        self._apart: list[torch.Tensor] | None = None

    def begin(
        self,
        key: Hashable,
        want_cached: bool,
        rows: int,
        cond_rows: int,
        model: int,
        shape: tuple,
        cond_at: int = 0,
    ) -> bool:
        """Announce the next UNet call and tell whether it runs cached. key None: a call that is not the plan's."""
        self._key, self._keeper_ran, self._reused = key, False, None
        self._stored = Stored(rows, model, shape, cond_at)
        if key is None or self.disabled or not want_cached or key not in self._entries:
            return False
        stored, tensor = self._entries[key]
        usable = usable_rows(stored, rows, cond_rows, model, shape)
        if usable is None:
            return False
        at = stored.cond_at if usable < stored.rows else 0
        self._reused = tensor[at : at + usable]
        return True

    @property
    def cached_call(self) -> bool:
        """Whether the blocks up to the keeper keep still; the keeper's turn ends it."""
        return self._reused is not None

    @property
    def reused(self) -> torch.Tensor | None:
        """What the announced call takes instead of computing it, [rows, channels, H, W], until it is taken."""
        return self._reused

    def skips_output_block(self, i: int, depth: int) -> bool:
        """Whether output block i keeps still in the call now running."""
        return self.cached_call and depth + 1 + i <= self.keeper

    def keep(self, tensor: torch.Tensor) -> None:
        if self._apart is not None:
            self._apart.append(tensor)
            return
        if self._keeper_ran and self._key is not None:
            self.disabled = "something ran the UNet's blocks twice in one call (reference-only does)"
            self._entries.clear()
        self._keeper_ran = True
        if self._key is not None and not self.disabled:
            self._entries[self._key] = (self._stored, tensor)
            self._measure()

    @contextmanager
    def apart(self, reused: torch.Tensor | None) -> Iterator[list[torch.Tensor]]:
        """While entered, the announced call is run for its operations alone (to be captured, compiled or compared): it
        takes `reused`, and what it keeps lands in the list. The store, and the call when it is run again, know nothing
        of it."""
        before = self._reused, self._keeper_ran, self._apart
        self._reused, self._keeper_ran, self._apart = reused, False, []
        try:
            yield self._apart
        finally:
            self._reused, self._keeper_ran, self._apart = before

    def save(self, tensor: torch.Tensor) -> None:
        """Store what the announced call kept, as a copy: `tensor` is a captured call's own memory."""
        if self._key is None or self.disabled:
            return
        _, buffer = self._entries.get(self._key, (None, None))
        if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype or buffer.is_inference():
            buffer = torch.empty_like(tensor)
        self._entries[self._key] = (self._stored, buffer.copy_(tensor))
        self._measure()

    def _measure(self) -> None:
        self.peak_bytes = max(self.peak_bytes, sum(t.nbytes for _, t in self._entries.values()))

    def take(self) -> torch.Tensor:
        """The stored feature, once a call: whoever runs the blocks a second time in it computes them."""
        tensor, self._reused, self._keeper_ran = self._reused, None, True
        return tensor

    def clear(self) -> None:
        """Forget everything stored: another model, or the end of the run."""
        self._entries.clear()
        self._reused = None


@contextmanager
def deepcache_attached(layout: Layout, store: DeepCacheStore) -> Iterator[None]:
    """While entered, the blocks from `first_skipped` to `keeper` obey `store`. The store is empty afterwards."""
    with ExitStack() as stack:
        stack.callback(store.clear)
        for index in range(store.first_skipped, store.keeper + 1):
            make = _keeper(store) if index == store.keeper else _skipped(store, layout.channels[index])
            *before, last = layout.called(layout.blocks[index])
            for layer in before:
                stack.enter_context(replaced(layer, "forward", _passed(store)))
            stack.enter_context(replaced(last, "forward", make))
        yield


def _keeper(store: DeepCacheStore):
    def make(original):
        def forward(h, *args, **kwargs):
            if store.cached_call:
                return store.take()
            out = original(h, *args, **kwargs)
            store.keep(out)
            return out

        return forward

    return make


def _passed(store: DeepCacheStore):
    """A layer whose block ends with another one: that one gives the block's result."""

    def make(original):
        def forward(h, *args, **kwargs):
            return h if store.cached_call else original(h, *args, **kwargs)

        return forward

    return make


def _skipped(store: DeepCacheStore, channels: int):
    def make(original):
        def forward(h, *args, **kwargs):
            if store.cached_call:
                # Nobody reads it but concatenations and ControlNet's additions, which fit any height and width: one
                # pixel of the right width, without memory of its own, keeps them working at no cost.
                return h[:, :1, :1, :1].expand(-1, channels, -1, -1)
            return original(h, *args, **kwargs)

        return forward

    return make
