"""The deep features that are kept of one UNet, and what each of its calls takes from them and leaves there."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import contextmanager

import torch

from sdxl_optim.sampling.call import UNetCall
from sdxl_optim.techniques.deepcache.reuse import Stored, usable_rows


class DeepCacheStore:
    """There is one entry for each place of a UNet call in its step, so their number is bounded by the calls of one
    step."""

    def __init__(self) -> None:
        self.disabled: str | None = None  # the reason, once something was seen that can't be served
        self.peak_bytes = 0
        self._entries: dict[Hashable, tuple[Stored, torch.Tensor]] = {}

    def exchange(self, call: UNetCall, may_reuse: bool) -> FeatureExchange:
        """What `call` takes and leaves. may_reuse: whether the plan has it take a kept feature."""
        return FeatureExchange(self, call, self._usable(call) if may_reuse else None)

    def _usable(self, call: UNetCall) -> torch.Tensor | None:
        if call.place is None or self.disabled or call.place not in self._entries:
            return None
        stored, tensor = self._entries[call.place]
        usable = usable_rows(stored, call.rows, call.cond_rows, call.model, call.shape)
        if usable is None:
            return None
        at = stored.cond_at if usable < stored.rows else 0
        return tensor[at : at + usable]

    def put(self, call: UNetCall, tensor: torch.Tensor) -> None:
        """Keep `tensor` itself for later calls at the same place."""
        if call.place is not None and not self.disabled:
            self._entries[call.place] = (Stored(call.rows, call.model, call.shape, call.cond_at), tensor)
            self.peak_bytes = max(self.peak_bytes, sum(t.nbytes for _, t in self._entries.values()))

    def put_copy(self, call: UNetCall, tensor: torch.Tensor) -> None:
        """Keep a copy of `tensor`, in the entry's own memory where that fits."""
        if call.place is None or self.disabled:
            return
        _, buffer = self._entries.get(call.place, (None, None))
        if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype or buffer.is_inference():
            buffer = torch.empty_like(tensor)
        self.put(call, buffer.copy_(tensor))

    def disable(self, reason: str) -> None:
        """Nothing is reused from here on."""
        self.disabled = reason
        self._entries.clear()

    def clear(self) -> None:
        """Forget everything stored: another model, or the end of the run."""
        self._entries.clear()


class FeatureExchange:
    """What one UNet call takes from the store and what it leaves there."""

    def __init__(self, store: DeepCacheStore, call: UNetCall, reused: torch.Tensor | None):
        self.store, self._call = store, call
        self._reused = reused
        self._left = False  # whether the last skipped block has had its turn
        self._isolated: list[torch.Tensor] | None = None

    @property
    def reused(self) -> torch.Tensor | None:
        """[rows, channels, H, W] that the call takes instead of computing it, until it has taken it."""
        return self._reused

    def take(self) -> torch.Tensor | None:
        """The kept feature, once: whoever runs the blocks a second time in the call computes them."""
        tensor, self._reused, self._left = self._reused, None, True
        return tensor

    def leave(self, tensor: torch.Tensor) -> None:
        """What the call has computed for later ones."""
        if self._isolated is not None:
            self._isolated.append(tensor)
            return
        if self._left and self._call.place is not None:
            self.store.disable("something ran the UNet's blocks twice in one call (reference-only does)")
        self._left = True
        self.store.put(self._call, tensor)

    @contextmanager
    def isolated(self, reused: torch.Tensor | None) -> Iterator[list[torch.Tensor]]:
        """Context manager: the call is run for its operations alone (to be captured, compiled or compared). It takes
        `reused`, and what it leaves lands in the list; the store, and the call when it is run again, know nothing of
        it."""
        before = self._reused, self._left, self._isolated
        self._reused, self._left, self._isolated = reused, False, []
        try:
            yield self._isolated
        finally:
            self._reused, self._left, self._isolated = before

    def save(self, tensor: torch.Tensor) -> None:
        """Keep a copy of what a captured call left in memory of its own."""
        self.store.put_copy(self._call, tensor)
