"""DeepCache (arXiv:2312.00858) on a UNet of the ldm/sgm layout: the blocks deeper than a branch keep still on cached
steps.

Branches are counted as the `deepcache` package does: branch k = 3 * block + layer, which in this layout is simply
the input block whose skip connection is the last one still computed. (The paper counts skip branches from 1 and per
down block.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any, Protocol

from sdxl_optim.sampling.call import UNetCall
from sdxl_optim.sampling.note import Note
from sdxl_optim.techniques.deepcache.store import DeepCacheStore, FeatureExchange
from sdxl_optim.unet.layout import Layout
from sdxl_optim.unet.patching import replaced

KEY = "deepcache"
CurrentCall = Callable[[], UNetCall | None]


class Reporting(Protocol):
    """Where an attachment puts what is known of it at its end."""

    def kept(self, nbytes: int) -> None: ...

    def note(self, note: Note) -> None: ...


class DeepCacheOnBlocks:
    """DeepCache in the calls of one UNet. skipped: indices of the layout's blocks that cached calls leave out; what the
    last of them puts out is what is kept."""

    def __init__(self, layout: Layout, branch: int):
        self.branch = branch
        self.skipped = range(branch + 1, 2 * layout.depth - branch)
        self.store = DeepCacheStore()

    def begin(self, call: UNetCall) -> UNetCall:
        exchange = self.store.exchange(call, call.ours and call.does(KEY))
        cached = exchange.reused is not None
        call = replace(call, exchange=exchange, cached=cached, skipped=self.skipped if cached else range(0))
        return call.with_operation(KEY, self.branch, acts=cached)


@contextmanager
def deepcache_attached(
    layout: Layout, branch: int, current: CurrentCall, reporting: Reporting
) -> Iterator[DeepCacheOnBlocks]:
    """Context manager: the blocks deeper than the branch compute, or take what was kept, as the call under way says.
    current: that call. The store is empty afterwards."""
    at_work = DeepCacheOnBlocks(layout, branch)
    with ExitStack() as stack:
        stack.callback(_close, at_work.store, reporting)
        for index in at_work.skipped:
            last_skipped = index == at_work.skipped[-1]
            make = _last_skipped(current) if last_skipped else _skipped(current, layout.channels[index])
            *before, last = layout.called(layout.blocks[index])
            for layer in before:
                stack.enter_context(replaced(layer, "forward", _passed(current)))
            stack.enter_context(replaced(last, "forward", make))
        yield at_work


def _close(store: DeepCacheStore, reporting: Reporting) -> None:
    reporting.kept(store.peak_bytes)
    if store.disabled:
        reporting.note(Note("DeepCache", store.disabled))
    store.clear()


def _exchange(current: CurrentCall) -> Any:
    """The FeatureExchange of the call under way, or None."""
    call = current()
    return None if call is None else call.exchange


def _waits(exchange: FeatureExchange | None) -> bool:
    """Whether blocks keep still: the call takes a kept feature, and has not taken it yet."""
    return exchange is not None and exchange.reused is not None


def _last_skipped(current: CurrentCall):
    def make(original):
        def forward(h, *args, **kwargs):
            exchange = _exchange(current)
            if _waits(exchange):
                return exchange.take()
            out = original(h, *args, **kwargs)
            if exchange is not None:
                exchange.leave(out)
            return out

        return forward

    return make


def _passed(current: CurrentCall):
    """A layer whose block ends with another one: that one gives the block's result."""

    def make(original):
        def forward(h, *args, **kwargs):
            return h if _waits(_exchange(current)) else original(h, *args, **kwargs)

        return forward

    return make


def _skipped(current: CurrentCall, channels: int):
    def make(original):
        def forward(h, *args, **kwargs):
            if _waits(_exchange(current)):
                # Nobody reads it but concatenations and ControlNet's additions, which fit any height and width: one
                # pixel of the right width, without memory of its own, keeps them working at no cost.
                return h[:, :1, :1, :1].expand(-1, channels, -1, -1)
            return original(h, *args, **kwargs)

        return forward

    return make
