"""The small memsets in a captured graph as kernels.

Libraries clear a few bytes before many of their kernels, some 330 times in a call of SDXL. In a graph such a memset is
executed by another unit of the card than a kernel and costs 5 µs and more with the waits around it; a kernel that does
the same costs 1.5 µs (measured on an H100).

It uses NVIDIA's driver interface (https://docs.nvidia.com/cuda/cuda-driver-api/group__CUDA__GRAPH.html), and runs from
torch 2.8 on.
"""

from __future__ import annotations

import ctypes
import os
from functools import cached_property, lru_cache

import torch

MEMSET = 2  # CU_GRAPH_NODE_TYPE_MEMSET
MOST_BYTES = 1 << 20  # up to here a kernel of one word a thread is at least as fast
THREADS = 256

# Compiled by the driver for the card at hand.
FILL = b"""
.version 6.4
.target sm_50
.address_size 64
.visible .entry fill(.param .u64 place, .param .u32 words, .param .u32 value)
{
    .reg .pred %p;
    .reg .b32 %block, %threads, %thread, %i, %words, %value;
    .reg .b64 %place, %offset;
    ld.param.u64 %place, [place];
    ld.param.u32 %words, [words];
    ld.param.u32 %value, [value];
    mov.u32 %block, %ctaid.x;
    mov.u32 %threads, %ntid.x;
    mov.u32 %thread, %tid.x;
    mad.lo.u32 %i, %block, %threads, %thread;
    setp.ge.u32 %p, %i, %words;
    @%p bra DONE;
    cvta.to.global.u64 %place, %place;
    mul.wide.u32 %offset, %i, 4;
    add.u64 %place, %place, %offset;
    st.global.u32 [%place], %value;
DONE:
    ret;
}
"""


class Memset(ctypes.Structure):  # CUDA_MEMSET_NODE_PARAMS
    _fields_ = [
        ("place", ctypes.c_uint64),
        ("pitch", ctypes.c_size_t),
        ("value", ctypes.c_uint),
        ("element_size", ctypes.c_uint),
        ("width", ctypes.c_size_t),
        ("height", ctypes.c_size_t),
    ]

    @property
    def nbytes(self) -> int:
        return self.element_size * self.width * self.height

    @property
    def word(self) -> int:
        """Four bytes of what is written."""
        return self.value * {1: 0x01010101, 2: 0x00010001, 4: 1}[self.element_size] & 0xFFFFFFFF

    def is_small(self) -> bool:
        return self.height == 1 and self.nbytes <= MOST_BYTES and self.nbytes % 4 == 0 and self.place % 4 == 0


class _Kernel(ctypes.Structure):  # CUDA_KERNEL_NODE_PARAMS
    _fields_ = [
        ("function", ctypes.c_void_p),
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared_bytes", ctypes.c_uint),
        ("arguments", ctypes.POINTER(ctypes.c_void_p)),
        ("extra", ctypes.POINTER(ctypes.c_void_p)),
    ]


def new_graph() -> tuple[torch.cuda.CUDAGraph, bool]:
    """A graph to capture into, and whether it can be changed before it is instantiated."""
    if torch.version.hip is None and hasattr(torch.cuda.CUDAGraph, "raw_cuda_graph"):
        return torch.cuda.CUDAGraph(keep_graph=True), True
    return torch.cuda.CUDAGraph(), False


class Driver:
    """The CUDA driver's functions on graphs. library: as ctypes loads it."""

    def __init__(self, library):
        self._library = library

    def call(self, function: str, *arguments) -> None:
        """Raises OSError if the driver lacks the function or refuses."""
        try:
            error = getattr(self._library, function)(*arguments)
        except AttributeError as missing:
            raise OSError(f"this driver has no {function}") from missing
        if error:
            raise OSError(f"{function} gives error {error}")

    def several(self, function: str, of: ctypes.c_void_p) -> list[ctypes.c_void_p]:
        """The graph nodes that `function` lists."""
        number = ctypes.c_size_t()
        self.call(function, of, None, ctypes.byref(number))
        nodes = (ctypes.c_void_p * number.value)()
        if number.value:
            self.call(function, of, nodes, ctypes.byref(number))
        return [ctypes.c_void_p(node) for node in nodes]

    @cached_property
    def fill(self) -> int | None:
        """The fill kernel's CUfunction, in the context that torch has made current."""
        module, function = ctypes.c_void_p(), ctypes.c_void_p()
        self.call("cuModuleLoadData", ctypes.byref(module), FILL)
        self.call("cuModuleGetFunction", ctypes.byref(function), module, b"fill")
        return function.value


@lru_cache
def _installed_driver() -> Driver:
    return Driver(ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1"))


def memsets_as_kernels(graph: int, driver: Driver | None = None) -> int:
    """Replace the small memsets in a graph, a CUgraph's address, and return how many there were.

    Raises OSError if the driver refuses. The graph does the same as before, whichever memsets were replaced by then.
    """
    driver, parent = driver or _installed_driver(), ctypes.c_void_p(graph)
    replaced = 0
    for node in driver.several("cuGraphGetNodes", parent):
        kind = ctypes.c_int()
        driver.call("cuGraphNodeGetType", node, ctypes.byref(kind))
        if kind.value != MEMSET:
            continue
        memset = Memset()
        driver.call("cuGraphMemsetNodeGetParams", node, ctypes.byref(memset))
        if memset.is_small():
            _replace(driver, parent, node, memset)
            replaced += 1
    return replaced


def _replace(driver: Driver, graph: ctypes.c_void_p, node: ctypes.c_void_p, memset: Memset) -> None:
    before = driver.several("cuGraphNodeGetDependencies", node)
    after = driver.several("cuGraphNodeGetDependentNodes", node)
    words = memset.nbytes // 4
    values = ctypes.c_uint64(memset.place), ctypes.c_uint32(words), ctypes.c_uint32(memset.word)
    arguments = (ctypes.c_void_p * 3)(*(ctypes.addressof(value) for value in values))
    blocks = -(-words // THREADS)
    kernel = _Kernel(driver.fill, (blocks, 1, 1), (THREADS, 1, 1), 0, arguments, None)
    new = ctypes.c_void_p()
    driver.call("cuGraphAddKernelNode", ctypes.byref(new), graph, _array(before), _size(before), ctypes.byref(kernel))
    if after:
        driver.call("cuGraphAddDependencies", graph, _array([new] * len(after)), _array(after), _size(after))
    driver.call("cuGraphDestroyNode", node)


def _array(nodes: list[ctypes.c_void_p]):
    return (ctypes.c_void_p * len(nodes))(*nodes)


def _size(nodes: list) -> ctypes.c_size_t:
    return ctypes.c_size_t(len(nodes))
