"""A graph's memsets become kernels, in the same place of the graph. The driver's library here is the test's own."""

from __future__ import annotations

import ctypes
import re

import pytest

from sdxl_optim.backends.rewrites.memset_nodes import FILL, MEMSET, Driver, Memset, memsets_as_kernels

KERNEL = 0


class Library:
    """Graph nodes are the numbers 1, 2, …; each has a kind, edges, and a memset its parameters."""

    def __init__(self, kinds: dict[int, int], edges: set[tuple[int, int]], memsets: dict[int, Memset]):
        self.kinds, self.edges, self.memsets = kinds, edges, memsets
        self.fills: dict[int, tuple] = {}
        self.loaded = 0
        self.refused = ""

    def __getattr__(self, name: str):
        if not name.startswith("cu"):
            raise AttributeError(name)
        function = getattr(self, "_on_" + re.sub(r"(?<!^)(?=[A-Z])", "_", name[2:]).lower())
        return lambda *arguments: 801 if name == self.refused else function(*arguments) or 0

    def _list(self, found: list[int], array, number) -> None:
        number._obj.value = len(found)
        for i in range(len(found) if array is not None else 0):
            array[i] = found[i]

    def _on_graph_get_nodes(self, graph, array, number):
        self._list(sorted(self.kinds), array, number)

    def _on_graph_node_get_type(self, node, kind):
        kind._obj.value = self.kinds[node.value]

    def _on_graph_memset_node_get_params(self, node, memset):
        ctypes.pointer(memset._obj)[0] = self.memsets[node.value]

    def _on_graph_node_get_dependencies(self, node, array, number):
        self._list(sorted(a for a, b in self.edges if b == node.value), array, number)

    def _on_graph_node_get_dependent_nodes(self, node, array, number):
        self._list(sorted(b for a, b in self.edges if a == node.value), array, number)

    def _on_module_load_data(self, module, image):
        assert image == FILL
        self.loaded += 1
        module._obj.value = 77

    def _on_module_get_function(self, function, module, name):
        assert (module.value, name) == (77, b"fill")
        function._obj.value = 78

    def _on_graph_add_kernel_node(self, new, graph, before, number, kernel):
        node = max(self.kinds) + 1
        self.kinds[node] = KERNEL
        self.edges |= {(before[i], node) for i in range(number.value)}
        kernel = kernel._obj
        types = ctypes.c_uint64, ctypes.c_uint32, ctypes.c_uint32
        given = [ctypes.cast(kernel.arguments[i], ctypes.POINTER(t)).contents.value for i, t in enumerate(types)]
        self.fills[node] = (kernel.function, kernel.grid[0] * kernel.block[0], *given)
        new._obj.value = node

    def _on_graph_add_dependencies(self, graph, before, after, number):
        self.edges |= {(before[i], after[i]) for i in range(number.value)}

    def _on_graph_destroy_node(self, node):
        del self.kinds[node.value]
        self.edges = {edge for edge in self.edges if node.value not in edge}


def memset(nbytes: int, value: int = 0, size: int = 1, place: int = 4096, height: int = 1) -> Memset:
    return Memset(place, nbytes, value, size, nbytes // size, height)


def replace(library: Library) -> int:
    return memsets_as_kernels(1, Driver(library))


def diamond(*sets: Memset) -> Library:
    """1 → each memset → 2, and 1 → 2."""
    kinds = {1: KERNEL, 2: KERNEL} | {3 + i: MEMSET for i in range(len(sets))}
    edges = {(1, 2)} | {edge for i in range(len(sets)) for edge in ((1, 3 + i), (3 + i, 2))}
    return Library(kinds, edges, {3 + i: m for i, m in enumerate(sets)})


def test_small_memsets_become_kernels_between_the_same_nodes():
    library = diamond(memset(1200), memset(8, value=0xAB), memset(4, value=0x1234, size=2))
    assert replace(library) == 3
    assert MEMSET not in library.kinds.values()
    assert library.loaded == 1
    assert library.edges == {(1, 2)} | {edge for n in library.fills for edge in ((1, n), (n, 2))}
    assert list(library.fills.values()) == [
        (78, 512, 4096, 300, 0),
        (78, 256, 4096, 2, 0xABABABAB),
        (78, 256, 4096, 1, 0x12341234),
    ]


def test_a_memset_without_neighbours():
    library = Library({3: MEMSET}, set(), {3: memset(4)})
    assert replace(library) == 1
    assert library.edges == set()
    assert len(library.fills) == 1


OTHERS = {"large": memset(4 << 20), "odd": memset(7), "apart": memset(8, place=4098), "2D": memset(8, height=2)}


@pytest.mark.parametrize("kept", OTHERS.values(), ids=OTHERS)
def test_other_memsets_stay(kept):
    library = diamond(kept)
    before = dict(library.kinds), set(library.edges)
    assert replace(library) == 0
    assert (library.kinds, library.edges) == before


@pytest.mark.parametrize("refused", ["cuGraphGetNodes", "cuModuleLoadData", "cuGraphAddKernelNode"])
def test_a_driver_that_refuses_leaves_the_graph(refused):
    library = diamond(memset(8))
    library.refused = refused
    with pytest.raises(OSError, match=f"{refused} gives error 801"):
        replace(library)
    assert list(library.kinds.values()).count(MEMSET) == 1
    assert not library.fills


def test_a_driver_that_lacks_a_function(monkeypatch):
    monkeypatch.delattr(Library, "_on_graph_node_get_type")
    with pytest.raises(OSError, match="no cuGraphNodeGetType"):
        replace(diamond(memset(8)))
