"""CUDA graphs (https://pytorch.org/docs/stable/notes/cuda.html#cuda-graphs): the kernels of a call are captured once
and replayed together from then on.

Neither a compiler nor Triton is needed. A replay saves the time in which Python launches some thousand kernels one by
one. The results are those of the stock call within rounding: in half precision some layers are captured as other
operations (rewrites/layers.py), and the text's keys and values are computed on a side stream.
"""

from __future__ import annotations

import contextlib
import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch

from sdxl_optim.backends.api import Backend, Tensors
from sdxl_optim.backends.call.capture_guard import CaptureGuard
from sdxl_optim.backends.call.static_call import Buffers, StaticCall
from sdxl_optim.backends.environment import Environment
from sdxl_optim.backends.rewrites import memset_nodes
from sdxl_optim.backends.rewrites.layers import LARGE
from sdxl_optim.backends.rewrites.side_stream import SideStream
from sdxl_optim.backends.rewrites.weight_layout import WeightLayout
from sdxl_optim.wording import Text, message


class Streams:
    """One stream a use and device for as long as the program runs: for each stream that was ever used, torch keeps a
    workspace of cuBLAS, 8 MiB, or 32 on a Hopper card. make: of a device's number."""

    def __init__(self, make: Callable[[int], torch.cuda.Stream] = torch.cuda.Stream):
        self._make = make
        self._streams: dict[tuple[str, int], torch.cuda.Stream] = {}

    def of(self, use: str) -> torch.cuda.Stream:
        """For the current device."""
        key = use, torch.cuda.current_device()
        if key not in self._streams:
            self._streams[key] = self._make(key[1])
        return self._streams[key]

    def forget(self) -> None:
        """Make new ones from now on."""
        self._streams.clear()


STREAMS = Streams()


class CudaGraph(Backend):
    """All graphs share one memory pool, as they never run at the same time. streams: of every instance by default."""

    name = "cudagraph"
    weight_layout = WeightLayout(channels_last_from=LARGE)

    def __init__(self, streams: Streams | None = None):
        self._streams = STREAMS if streams is None else streams
        self._buffers = Buffers()
        self._pool: object = None
        self._replays: weakref.WeakSet[_Replay] = weakref.WeakSet()

    def probe(self, environment: Environment) -> Text | None:
        if not environment.cuda:
            return "needs a CUDA device"
        if environment.torch < (2, 1):
            here = ".".join(map(str, environment.torch))
            return message("needs torch {least} or later; here is {here}", least="2.1", here=here)
        return None

    def side_stream(self) -> SideStream:
        """For the layers that a captured call runs beside the others."""
        return SideStream(self._streams.of("beside a call"))

    def prepare(self, body, inputs: Tensors, progress) -> StaticCall:
        side_stream = self.side_stream()

        def look(buffers):
            body(buffers, partial(side_stream.discover, body.unet))
            side_stream.warm_up(buffers)

        return self.record(lambda buffers: body(buffers, side_stream.prefetch), inputs, look)

    def record(self, call: Callable, inputs: Tensors, first: Callable | None = None) -> StaticCall:
        """`call` as a graph. first: called before it, in its place, for what a capture can't contain."""
        stream = self._streams.of("captures")
        if not self._replays:  # torch frees a pool with the last graph in it, and refuses to use it again
            self._pool = torch.cuda.graph_pool_handle()
        buffers = self._buffers.of(inputs)
        guard = CaptureGuard()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream), guard:
            (first or call)(buffers)  # lazy initialisations happen here
        torch.cuda.synchronize()
        before = torch.cuda.memory_reserved()
        graph, can_be_changed = memset_nodes.new_graph()
        with torch.cuda.stream(stream), _no_garbage_collection():
            try:
                outputs = _capture(graph, self._pool, lambda: call(buffers), guard.replay_constants())
            except BaseException:
                # The pool and the streams of a failed capture may be in a broken state.
                self._pool = torch.cuda.graph_pool_handle()
                self._streams.forget()
                raise
        if can_be_changed:
            with contextlib.suppress(OSError):  # the graph is only slower with its memsets
                memset_nodes.memsets_as_kernels(graph.raw_cuda_graph())
            graph.instantiate()
        # The graph's kernels read the guard's constants at each replay.
        replay = _Replay(graph, guard.constants)
        self._replays.add(replay)
        return StaticCall(buffers, outputs, replay, max(0, torch.cuda.memory_reserved() - before))

    def release(self) -> None:
        self._buffers.clear()
        self._pool = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


class _Replay:
    def __init__(self, graph: torch.cuda.CUDAGraph, constants: list[torch.Tensor]):
        self.graph, self.constants = graph, constants

    def __call__(self) -> None:
        self.graph.replay()


def _capture(graph: torch.cuda.CUDAGraph, pool, run, guard: CaptureGuard) -> list[torch.Tensor]:
    """Capture what `run` launches on the current stream, and return its result. A capture that fails is ended.

    The error mode confines the capture to this thread, as the host decodes its previews in another.
    """
    try:
        graph.capture_begin(pool=pool, capture_error_mode="thread_local")
    except BaseException:
        _repair(pool)
        raise
    try:
        with guard:
            outputs = run()
    except BaseException:
        _end_failed_capture(graph, pool)
        raise
    try:
        graph.capture_end()
    except BaseException:
        _repair(pool)
        raise
    return outputs


def _end_failed_capture(graph: torch.cuda.CUDAGraph, pool) -> None:
    try:
        graph.capture_end()
    except RuntimeError:  # something that can't be captured made the whole capture invalid
        _repair(pool)


def _repair(pool) -> None:
    """Put torch's allocator and random generator right: at an invalid capture, capture_end leaves both as if it still
    ran."""
    device = torch.cuda.current_device()
    # The end of an allocation to a pool by its names in torch 2.1 to 2.5 and from 2.6 on, then the pool's release.
    ends = (
        ("_cuda_endAllocateCurrentStreamToPool", (device,)),
        ("_cuda_endAllocateToPool", (device, pool)),
        ("_cuda_releasePool", (device, pool)),
    )
    for name, args in ends:
        with contextlib.suppress(AttributeError, RuntimeError, TypeError):  # another torch, or done by capture_end
            getattr(torch._C, name)(*args)
    graph = torch.cuda.CUDAGraph()
    graph.capture_begin(capture_error_mode="thread_local")  # the end of a good capture resets the generator
    torch.zeros(1, device="cuda")
    graph.capture_end()


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Context manager: freeing a tensor in the middle of a capture could break it."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
