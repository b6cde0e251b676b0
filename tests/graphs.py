"""A backend for tests: what a CUDA graph is, without CUDA. It records a call's tensor operations once, over buffers of
its own, and replays these alone; Python inside the call does not run again."""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sdxl_optim.backends.call.static_call import Buffers, StaticCall


class Recorder(TorchDispatchMode):
    """The operations of a call, in order. Tensors that come from outside are read where they lay while it recorded, as
    a graph does it."""

    def __init__(self):
        super().__init__()
        self.operations: list[tuple] = []
        self._slots: dict[int, int] = {}
        self._alive: list = []  # no id is given twice

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = mapped(self._name, (args, kwargs or {}))
        result = func(*args, **(kwargs or {}))
        self.operations.append((func, *given, self._number(result)))
        return result

    def _name(self, value):
        if not isinstance(value, torch.Tensor):
            return value
        return Slot(self._slots[id(value)]) if id(value) in self._slots else value.detach()

    def _number(self, result) -> list[int | None]:
        numbers = []
        for value in listed(result):
            self._alive.append(value)
            numbers.append(self._slots.setdefault(id(value), len(self._slots)) if _is_tensor(value) else None)
        return numbers

    def slot(self, tensor: torch.Tensor) -> Slot:
        return Slot(self._slots[id(tensor)])

    def run(self, wanted: list[Slot]) -> list[torch.Tensor]:
        values: dict[int, torch.Tensor] = {}

        def read(value):
            return values[value.number] if isinstance(value, Slot) else value

        for func, args, kwargs, numbers in self.operations:
            result = func(*mapped(read, args), **mapped(read, kwargs))
            for number, value in zip(numbers, listed(result), strict=True):
                values[number] = value
        return [read(slot) for slot in wanted]


def mapped(function, values):
    """Nested arguments with `function` of each value in place of it; torch's own pytree takes ten times as long."""
    if isinstance(values, (list, tuple)):
        return type(values)([mapped(function, value) for value in values])
    if isinstance(values, dict):
        return {name: mapped(function, value) for name, value in values.items()}
    return function(values)


def listed(result) -> list:
    return list(result) if isinstance(result, (list, tuple)) else [result]


class Slot:
    def __init__(self, number: int):
        self.number = number


def _is_tensor(value) -> bool:
    return isinstance(value, torch.Tensor)


class Tape:
    """`prepared` counts its recordings, `replays` their replays. What `fail` names raises there."""

    name = "cudagraph"
    captures = True
    bakes_weights = False
    weight_layout = None

    def __init__(self):
        self.prepared = self.replays = self.released = 0
        self.fail: dict[str, Exception] = {}
        self._buffers = Buffers()

    def probe(self, environment):
        return None

    def prepare(self, body, inputs, progress):
        self._raise("before")
        buffers = self._buffers.of(inputs)
        recorder = Recorder()
        with recorder:
            recorded = body(buffers)
        slots = [recorder.slot(tensor) for tensor in recorded]
        outputs = [torch.full_like(tensor, float("nan")) for tensor in recorded]
        recorder._alive.clear()
        self._raise("after")
        self.prepared += 1

        def replay():
            self._raise("replay")
            self.replays += 1
            with torch.autocast(inputs[0].device.type, enabled=False):  # its casts are on the tape, where it was on
                results = recorder.run(slots)
            for output, result in zip(outputs, results, strict=True):
                output.copy_(result)

        return StaticCall(buffers, outputs, replay, nbytes=sum(output.nbytes for output in outputs))

    def release(self):
        self.released += 1
        self._buffers.clear()

    def _raise(self, where: str) -> None:
        if where in self.fail:
            raise self.fail[where]
