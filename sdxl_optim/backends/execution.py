"""Runs a UNet's calls by a backend: prepares each kind of call once, replays it, and falls back to the eager call."""

from __future__ import annotations

import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from sdxl_optim.backends.api import NO_HOOKS, Backend, CannotPrepare, HostHooks, Prepared
from sdxl_optim.backends.cache_key import CallKey, Weights, torch_switches
from sdxl_optim.backends.call.arguments import Arguments
from sdxl_optim.backends.call.body import UNetBody, split, without_cast_cache
from sdxl_optim.backends.call.foreign_hooks import global_hook, replaced_forward, why_not_capturable
from sdxl_optim.backends.rewrites.half_precision import can_run_without_autocast, without_autocast
from sdxl_optim.backends.rewrites.weight_layout import AppliedLayout
from sdxl_optim.report import PassReport
from sdxl_optim.sampling.call import Kind, UNetCall
from sdxl_optim.sampling.note import Note
from sdxl_optim.unet.patching import replaced
from sdxl_optim.wording import Message, Text, message, name

MOST = 16  # prepared calls that are kept; each has a graph, and all share the memory of the largest
TOLERANCE = 0.05  # relative difference from the eager result above which a prepared call is taken to be wrong


class Caller(Protocol):
    """The run whose calls are executed. call: the UNet call under way."""

    call: UNetCall | None
    report: PassReport


@dataclass
class Entry:
    """A prepared call. structure: of the UNet's answer. Seconds are those of one stock call, of one prepared
    call, and of preparing it."""

    prepared: Prepared
    structure: object
    unet: weakref.ref
    eager_seconds: float
    replay_seconds: float
    ready_seconds: float


class Execution:
    """One backend at work. The host keeps it between runs, so that prepared calls are used again. most: how many."""

    def __init__(
        self,
        backend: Backend,
        host: HostHooks = NO_HOOKS,
        most: int = MOST,
    ):
        self.backend = backend
        self._host, self._most = host, most
        self._entries: OrderedDict[CallKey, Entry] = OrderedDict()
        self._failed: dict[CallKey, Text] = {}
        self._weights: weakref.WeakKeyDictionary[nn.Module, Weights] = weakref.WeakKeyDictionary()
        self._layouts: weakref.WeakKeyDictionary[nn.Module, AppliedLayout] = weakref.WeakKeyDictionary()
        self._with_layout: weakref.WeakSet[nn.Module] = (
            weakref.WeakSet()
        )  # UNets whose weights lie as the backend wants

    @contextmanager
    def attached(self, unet: nn.Module, caller: Caller) -> Iterator[None]:
        """Context manager: the caller's calls of `unet` are executed by the backend."""
        if reason := self.why_not(unet):
            caller.report.add_note(Note(message("backend {name}", name=self.backend.name), reason))
            self.release()  # the stock calls have to run over weights in their own layout
            yield
            return
        caller.report.execution.backend = self.backend.name

        def make(original):
            return lambda *args, **kwargs: self._call(unet, original, caller, args, kwargs)

        with replaced(unet, "forward", make):
            yield

    def why_not(self, unet: nn.Module, before_undo: bool = False) -> Text | None:
        """Why the calls of `unet` have to be the stock ones, as it is patched now, or None.

        before_undo: our own offload and fp8, which the last request left on, are undone before the first call."""
        reason = replaced_forward(unet)
        if reason or not self.backend.captures:
            return reason
        try:
            return global_hook() or why_not_capturable(unet, self._host.is_idle_patch, before_undo)
        except CannotPrepare as error:
            return error.reason

    @property
    def nbytes(self) -> int:
        return sum(entry.prepared.nbytes for entry in self._entries.values())

    def __len__(self) -> int:
        return len(self._entries)

    def release(self) -> None:
        """Free everything that was prepared, and put the weights back into their own layout."""
        self._entries.clear()
        self.backend.release()
        self._with_layout.clear()
        for unet, applied in self._layouts.items():
            applied.undo()
            if unet in self._weights:  # the host did not move them, so a call that failed is not tried again
                self._weights[unet] = self._weights[unet].reread()

    # --- one call

    def _call(self, unet: nn.Module, original: Callable, caller: Caller, args: tuple, kwargs: dict):
        call, done = caller.call, None
        if call is not None and call.kind is not None:
            done = self._execute(unet, original, call, call.kind, caller.report, args, kwargs)
        return original(*args, **kwargs) if done is None else done[0]

    @torch.no_grad()
    def _execute(
        self, unet, original, call: UNetCall, kind: Kind, report: PassReport, args: tuple, kwargs: dict
    ) -> tuple | None:
        """The UNet's answer in a tuple, or None where the eager call is to be made instead."""
        key = None
        exchange: Any = call.exchange  # there where DeepCache is
        try:
            arguments = Arguments(args, kwargs)
            key = self._key(unet, kind, arguments)
            if key in self._failed:
                raise CannotPrepare(self._failed[key])
            half = can_run_without_autocast(self._weights[unet].dtypes, arguments.tensors)
            casting = without_autocast if half else without_cast_cache
            body = UNetBody(unet, original, arguments, kind, exchange, casting)
            inputs = [*arguments.tensors, exchange.reused] if kind.cached else arguments.tensors
            entry = self._entries.get(key)
            if entry is None:
                entry, outputs = self._prepare(body, inputs)
                self._keep(key, entry, report)
            else:
                self._entries.move_to_end(key)
                outputs = entry.prepared(body, inputs)
            out, kept = split(outputs, entry.structure)
            if kept is not None:
                exchange.save(kept)
        except Exception as error:  # whatever a backend can't do, the picture is finished
            self._fall_back(key, error, report)
            out_of_memory = isinstance(error, torch.cuda.OutOfMemoryError)
        else:
            report.execution.count_replay(entry.eager_seconds - entry.replay_seconds)
            return (out,)
        if out_of_memory:  # after the exception, which holds what was computed so far
            with suppress(torch.cuda.OutOfMemoryError):
                self.release()
        return None

    def _key(self, unet: nn.Module, kind: Kind, arguments: Arguments) -> CallKey:
        self._host.prepare(unet)
        fingerprint = self._host.fingerprint(unet)
        weights = self._weights.get(unet)
        if weights is None or weights.moved(fingerprint):
            self._forget(unet)
            self._weights[unet] = Weights(unet, fingerprint)
        version = self._weights[unet].version() if self.backend.bakes_weights else None
        return CallKey(id(unet), kind, arguments.signature(), fingerprint, version, torch_switches())

    def _forget(self, unet: nn.Module) -> None:
        """Drop the calls of `unet`, whose weights have moved: what was captured reads the old addresses."""
        for key in [key for key, entry in self._entries.items() if entry.unet() in (None, unet)]:
            del self._entries[key]
        self._failed = {key: reason for key, reason in self._failed.items() if key.unet != id(unet)}
        self._with_layout.discard(unet)

    def _apply_weight_layout(self, unet: nn.Module) -> None:
        """Bring the weights into the backend's layout, before the first call of `unet` is prepared."""
        if self.backend.weight_layout is None or unet in self._with_layout:
            return
        self._with_layout.add(unet)
        self.backend.weight_layout.apply(unet, self._layouts.setdefault(unet, AppliedLayout()))
        self._weights[unet] = self._weights[unet].reread()

    def _prepare(self, body: UNetBody, inputs) -> tuple[Entry, list[torch.Tensor]]:
        """The prepared call and its outputs for `inputs`, compared with the stock call's."""
        stock = body.as_stock()
        if not self._entries:
            stock(inputs)  # warms up: the very first call is slower than the others
        expected, eager_seconds = _timed(lambda: stock(inputs), inputs)
        self._apply_weight_layout(body.unet)
        started = time.perf_counter()
        try:
            prepared = self.backend.prepare(body, inputs, self._host.progress)
        finally:
            self._host.progress("")
        ready_seconds = time.perf_counter() - started
        outputs, replay_seconds = _timed(lambda: prepared(body, inputs), inputs)
        _compare(outputs, expected)
        entry = Entry(prepared, stock.structure, weakref.ref(body.unet), eager_seconds, replay_seconds, ready_seconds)
        return entry, outputs

    def _keep(self, key: CallKey, entry: Entry, report: PassReport) -> None:
        self._entries[key] = entry
        while len(self._entries) > self._most:
            self._entries.popitem(last=False)
        report.execution.count_prepared(entry.ready_seconds, self.nbytes)

    def _fall_back(self, key: CallKey | None, error: Exception, report: PassReport) -> None:
        if isinstance(error, torch.cuda.OutOfMemoryError):
            reason: Text = "the device's memory does not suffice for it"
        else:
            reason = error.reason if isinstance(error, CannotPrepare) else _first_line(error)
        if key is not None:
            self._failed[key] = reason
            self._entries.pop(key, None)
        report.fall_back(self.backend.name, reason)


def _first_line(error: Exception) -> Message:
    """Of what somebody else's error says, which may be long."""
    return name(f"{type(error).__name__}: {error}".splitlines()[0][:200])


def _timed(call: Callable, inputs) -> tuple[list[torch.Tensor], float]:
    _wait_for(inputs)
    started = time.perf_counter()
    result = call()
    _wait_for(inputs)
    return result, time.perf_counter() - started


def _wait_for(tensors) -> None:
    if tensors[0].is_cuda:
        torch.cuda.synchronize()


def _compare(outputs: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    """Raises CannotPrepare if the prepared call's outputs differ from the stock call's. NaN is the model's fault."""
    for ours, theirs in zip(outputs, expected, strict=True):
        ours, theirs = ours.float(), theirs.float()
        difference = float((ours - theirs).norm() / theirs.norm().clamp_min(1e-12))
        if difference > TOLERANCE:
            raise CannotPrepare(
                message("its result differs from the eager one by {share:.0f} %", share=100 * difference)
            )
