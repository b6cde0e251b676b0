"""A graph's memsets become kernels, in the same place of the graph. The driver here is the test's own."""

from __future__ import annotations

import ctypes
import re

import pytest

from sdxl_optim.backends.rewrites import memset_nodes

KERNEL = 0


class Driver:
    """Graph nodes are the numbers 1, 2, …; each has a kind, edges, and a memset its parameters."""

    def __init__(self, kinds: dict[int, int], edges: set[tuple[int, int]], memsets: dict[int, memset_nodes._Memset]):
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
        assert image == memset_nodes.FILL
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


def memset(nbytes: int, value: int = 0, size: int = 1, place: int = 4096, height: int = 1) -> memset_nodes._Memset:
    return memset_nodes._Memset(place, nbytes, value, size, nbytes // size, height)


@pytest.fixture
def drive(monkeypatch):
    def use(driver: Driver) -> Driver:
        monkeypatch.setattr(memset_nodes, "_driver", lambda: driver)
        memset_nodes._fill.cache_clear()
        return driver

    yield use
    memset_nodes._fill.cache_clear()


def diamond(*sets: memset_nodes._Memset) -> Driver:
    """1 → each memset → 2, and 1 → 2."""
    kinds = {1: KERNEL, 2: KERNEL} | {3 + i: memset_nodes.MEMSET for i in range(len(sets))}
    edges = {(1, 2)} | {edge for i in range(len(sets)) for edge in ((1, 3 + i), (3 + i, 2))}
    return Driver(kinds, edges, {3 + i: m for i, m in enumerate(sets)})


def test_small_memsets_become_kernels_between_the_same_nodes(drive):
    driver = drive(diamond(memset(1200), memset(8, value=0xAB), memset(4, value=0x1234, size=2)))
    assert memset_nodes.memsets_as_kernels(1) == 3
    assert memset_nodes.MEMSET not in driver.kinds.values()
    assert driver.loaded == 1
    assert driver.edges == {(1, 2)} | {edge for n in driver.fills for edge in ((1, n), (n, 2))}
    assert list(driver.fills.values()) == [
        (78, 512, 4096, 300, 0),
        (78, 256, 4096, 2, 0xABABABAB),
        (78, 256, 4096, 1, 0x12341234),
    ]


def test_a_memset_without_neighbours(drive):
    driver = drive(Driver({3: memset_nodes.MEMSET}, set(), {3: memset(4)}))
    assert memset_nodes.memsets_as_kernels(1) == 1
    assert driver.edges == set()
    assert len(driver.fills) == 1


OTHERS = {"large": memset(4 << 20), "odd": memset(7), "apart": memset(8, place=4098), "2D": memset(8, height=2)}


@pytest.mark.parametrize("kept", OTHERS.values(), ids=OTHERS)
def test_other_memsets_stay(drive, kept):
    driver = drive(diamond(kept))
    before = dict(driver.kinds), set(driver.edges)
    assert memset_nodes.memsets_as_kernels(1) == 0
    assert (driver.kinds, driver.edges) == before


@pytest.mark.parametrize("refused", ["cuGraphGetNodes", "cuModuleLoadData", "cuGraphAddKernelNode"])
def test_a_driver_that_refuses_leaves_the_graph(drive, refused):
    driver = drive(diamond(memset(8)))
    driver.refused = refused
    with pytest.raises(OSError, match=f"{refused} gives error 801"):
        memset_nodes.memsets_as_kernels(1)
    assert list(driver.kinds.values()).count(memset_nodes.MEMSET) == 1
    assert not driver.fills


def test_a_driver_that_lacks_a_function(drive, monkeypatch):
    monkeypatch.delattr(Driver, "_on_graph_node_get_type")
    drive(diamond(memset(8)))
    with pytest.raises(OSError, match="no cuGraphNodeGetType"):
        memset_nodes.memsets_as_kernels(1)
