"""Runs a UNet's calls by a backend: prepares each kind of call once, replays it, and falls back to the eager call."""

from __future__ import annotations

import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from sdxl_optim.backends.api import Backend, Kind, Prepared, Progress
from sdxl_optim.backends.call.body import Arguments, UNetBody, can_run_without_autocast, split
from sdxl_optim.backends.call.foreign_hooks import global_hook, replaced_forward, why_not_capturable
from sdxl_optim.backends.rewrites.weight_layout import AppliedLayout
from sdxl_optim.errors import Unsupported
from sdxl_optim.planning.plan import Note
from sdxl_optim.report import PassReport
from sdxl_optim.techniques.accumulation import has_fp16_accumulation
from sdxl_optim.techniques.deepcache.patch import DeepCacheStore
from sdxl_optim.unet.patching import replaced

MOST = 16  # prepared calls that are kept; each has a graph, and all share the memory of the largest
TOLERANCE = 0.05  # relative difference from the eager result at which a prepared call is taken to be wrong

Surroundings = Callable[[nn.Module], Hashable]


class Caller(Protocol):
    """The run whose calls are executed. kind: of the call now under way; None for a call that is not its own."""

    kind: Kind | None
    store: DeepCacheStore | None
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
    """One backend at work. The host keeps it between runs, so that what was prepared is used again.

    surroundings: brings about what the host does lazily in a call (changed weights), and returns whatever else of the
    host's state the call's operations depend on. It raises Unsupported where the call has to be the stock one.
    """

    def __init__(
        self,
        backend: Backend,
        surroundings: Surroundings = lambda unet: None,
        is_idle_patch: Callable[[nn.Module], bool] = lambda module: False,
        progress: Progress = lambda text: None,
        most: int = MOST,
    ):
        self.backend = backend
        self._surroundings, self._is_idle_patch, self._progress, self._most = (
            surroundings,
            is_idle_patch,
            progress,
            most,
        )
        self._entries: OrderedDict[Hashable, Entry] = OrderedDict()
        self._failed: dict[Hashable, str] = {}
        self._weights: weakref.WeakKeyDictionary[nn.Module, Weights] = weakref.WeakKeyDictionary()
        self._layouts: weakref.WeakKeyDictionary[nn.Module, AppliedLayout] = weakref.WeakKeyDictionary()
        self._with_layout: weakref.WeakSet[nn.Module] = (
            weakref.WeakSet()
        )  # UNets whose weights lie as the backend wants

    @contextmanager
    def attached(self, unet: nn.Module, caller: Caller) -> Iterator[None]:
        """While entered, the caller's calls of `unet` are executed by the backend."""
        try:
            reason = self._foreign_python(unet)
        except Unsupported as error:
            reason = error.reason
        if reason:
            caller.report.add_note(Note(f"backend {self.backend.name}", reason))
            self.release()  # the calls are the stock ones, over weights as they were
            yield
            return
        caller.report.execution.backend = self.backend.name

        def make(original):
            return lambda *args, **kwargs: self._call(unet, original, caller, args, kwargs)

        with replaced(unet, "forward", make):
            yield

    def _foreign_python(self, unet: nn.Module) -> str | None:
        reason = replaced_forward(unet)
        if reason is None and self.backend.captures:
            reason = global_hook() or why_not_capturable(unet, self._is_idle_patch)
        return reason

    @property
    def nbytes(self) -> int:
        return sum(entry.prepared.nbytes for entry in self._entries.values())

    def __len__(self) -> int:
        return len(self._entries)

    def release(self) -> None:
        """Free everything that was prepared, and leave the weights as they were."""
        self._entries.clear()
        self.backend.release()
        self._with_layout.clear()
        for unet, applied in self._layouts.items():
            applied.undo()
            if unet in self._weights:  # they did not move for anybody else, and what failed is not tried again
                self._weights[unet] = self._weights[unet].again()

    # --- one call

    def _call(self, unet: nn.Module, original: Callable, caller: Caller, args: tuple, kwargs: dict):
        done = self._execute(unet, original, caller, args, kwargs) if caller.kind is not None else None
        return original(*args, **kwargs) if done is None else done[0]

    @torch.no_grad()
    def _execute(self, unet, original, caller: Caller, args: tuple, kwargs: dict) -> tuple | None:
        """The UNet's answer in a tuple, or None where the eager call is to be made instead."""
        key, store = None, caller.store
        try:
            arguments = Arguments(args, kwargs)
            key = self._key(unet, caller.kind, arguments)
            if key in self._failed:
                raise Unsupported("backend", self._failed[key])
            bare = can_run_without_autocast(self._weights[unet].dtypes, arguments.tensors)
            body = UNetBody(unet, original, arguments, caller.kind, store, bare)
            inputs = [*arguments.tensors, store.reused] if caller.kind.cached else arguments.tensors
            entry = self._entries.get(key)
            if entry is None:
                entry, outputs = self._prepare(body, inputs)
                self._keep(key, entry, caller.report)
            else:
                self._entries.move_to_end(key)
                outputs = entry.prepared(body, inputs)
            out, kept = split(outputs, entry.structure)
            if kept is not None:
                store.save(kept)
        except Exception as error:  # whatever a backend can't do, the picture is finished
            self._fall_back(key, error, caller.report)
            out_of_memory = isinstance(error, torch.cuda.OutOfMemoryError)
        else:
            caller.report.execution.count_replay(entry.eager_seconds - entry.replay_seconds)
            return (out,)
        if out_of_memory:  # after the exception, which holds what was computed so far
            with suppress(torch.cuda.OutOfMemoryError):
                self.release()
        return None

    def _key(self, unet: nn.Module, kind: Kind, arguments: Arguments) -> Hashable:
        surroundings = self._surroundings(unet)
        weights = self._weights.get(unet)
        if weights is None or weights.moved(surroundings):
            self._forget(unet)
            self._weights[unet] = Weights(unet, surroundings)
        version = self._weights[unet].version() if self.backend.bakes_weights else None
        return (id(unet), kind, arguments.signature(), surroundings, version, _torch_switches())

    def _forget(self, unet: nn.Module) -> None:
        """Its weights are elsewhere now, and what was captured reads the old place."""
        for key in [key for key, entry in self._entries.items() if entry.unet() in (None, unet)]:
            del self._entries[key]
        self._failed = {key: reason for key, reason in self._failed.items() if key[0] != id(unet)}
        self._with_layout.discard(unet)

    def _apply_weight_layout(self, unet: nn.Module) -> None:
        """Once, before the first call of `unet` is prepared: what was captured reads weights where they lie."""
        if self.backend.weight_layout is None or unet in self._with_layout:
            return
        self._with_layout.add(unet)
        self.backend.weight_layout.apply(unet, self._layouts.setdefault(unet, AppliedLayout()))
        self._weights[unet] = self._weights[unet].again()

    def _prepare(self, body: UNetBody, inputs) -> tuple[Entry, list[torch.Tensor]]:
        """The prepared call and its outputs for `inputs`, compared with the stock call's."""
        stock = body.as_stock()
        if not self._entries:
            stock(inputs)  # the first call of all is slow for reasons of its own
        expected, eager_seconds = _timed(lambda: stock(inputs), inputs)
        self._apply_weight_layout(body.unet)
        started = time.perf_counter()
        try:
            prepared = self.backend.prepare(body, inputs, self._progress)
        finally:
            self._progress("")
        ready_seconds = time.perf_counter() - started
        outputs, replay_seconds = _timed(lambda: prepared(body, inputs), inputs)
        _compare(outputs, expected)
        entry = Entry(prepared, stock.structure, weakref.ref(body.unet), eager_seconds, replay_seconds, ready_seconds)
        return entry, outputs

    def _keep(self, key: Hashable, entry: Entry, report: PassReport) -> None:
        self._entries[key] = entry
        while len(self._entries) > self._most:
            self._entries.popitem(last=False)
        report.execution.count_prepared(entry.ready_seconds, self.nbytes)

    def _fall_back(self, key: Hashable, error: Exception, report: PassReport) -> None:
        if isinstance(error, torch.cuda.OutOfMemoryError):
            reason = "the device's memory does not suffice for it"
        else:
            reason = error.reason if isinstance(error, Unsupported) else f"{type(error).__name__}: {error}"
        if key is not None:
            self._failed[key] = reason
            self._entries.pop(key, None)
        report.fall_back(self.backend.name, reason.splitlines()[0][:200])


class Weights:
    """Where a UNet's weights lie, and their types. Changed in place they are the same to a captured call; moved, they
    are not."""

    def __init__(self, unet: nn.Module, surroundings: Hashable):
        tensors = [*unet.parameters(), *unet.buffers()]
        sample = tensors[:: max(1, len(tensors) // 16)]
        self._unet, self._surroundings = weakref.ref(unet), surroundings
        self._sample = [weakref.ref(tensor) for tensor in sample]
        self._addresses, self._sampled = _addresses(tensors), _addresses(sample)
        self.dtypes = frozenset(tensor.dtype for tensor in tensors if tensor.is_floating_point())

    def moved(self, surroundings: Hashable) -> bool:
        """All are looked at where the host's state changed (another LoRA), a sample of them otherwise: whoever moves a
        model moves all of it."""
        if surroundings == self._surroundings and self._sampled == _addresses(r() for r in self._sample):
            return False
        self._surroundings = surroundings
        unet = self._unet()
        return _addresses([*unet.parameters(), *unet.buffers()]) != self._addresses

    def again(self) -> Weights:
        """The same, as they lie now."""
        return Weights(self._unet(), self._surroundings)

    def version(self) -> int:
        """Another number after each change in place."""
        return sum(tensor._version for tensor in self._unet().parameters())


def _addresses(tensors) -> tuple[int, ...]:
    return tuple(0 if tensor is None else tensor.data_ptr() for tensor in tensors)


def _torch_switches() -> Hashable:
    """torch's own switches that decide which operations or kernels a call comes to."""
    cuda, cudnn = torch.backends.cuda, torch.backends.cudnn
    return (
        torch.is_autocast_enabled(),
        torch.is_inference_mode_enabled(),
        cuda.matmul.allow_tf32,
        has_fp16_accumulation() and cuda.matmul.allow_fp16_accumulation,
        cudnn.allow_tf32,
        cudnn.benchmark,
        cudnn.deterministic,
        cuda.flash_sdp_enabled(),
        cuda.mem_efficient_sdp_enabled(),
        cuda.math_sdp_enabled(),
    )


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
    """Raises Unsupported where what was prepared does not compute the same. (Not a number is the model's own fault.)"""
    for ours, theirs in zip(outputs, expected, strict=True):
        ours, theirs = ours.float(), theirs.float()
        difference = float((ours - theirs).norm() / theirs.norm().clamp_min(1e-12))
        if difference > TOLERANCE:
            raise Unsupported("backend", f"its result differs from the eager one by {100 * difference:.0f} %")
