"""Nothing imports in a circle: no module, and none of the files and folders that lie side by side in one folder."""

from __future__ import annotations

from collections import defaultdict

import pytest
from sources import Sources, product, seen

Graph = dict[str, set[str]]


def imported(sources: Sources, late: bool) -> Graph:
    """Which modules of ours each module imports. late: also inside functions."""
    graph = defaultdict(set)
    for module in sources:
        for item in module.imports:
            target = sources.target(item)
            if target not in (None, module.name) and not item.typing and (late or not item.late):
                graph[module.name].add(target)
    return graph


def side_by_side(graph: Graph, folder: str) -> Graph:
    """The same between what lies directly in `folder`, "" for the root: a file, or a folder with all that is in it."""
    start = f"{folder}." if folder else ""

    def child(module: str) -> str | None:
        return start + module.removeprefix(start).split(".")[0] if module.startswith(start) else None

    between = defaultdict(set)
    for module, targets in graph.items():
        for target in targets:
            a, b = child(module), child(target)
            if a and b and a != b:
                between[a].add(b)
    return between


def circles(graph: Graph) -> list[tuple[str, ...]]:
    """The sets of nodes that reach one another (strongly connected components of more than one)."""

    def reached(start: str) -> set[str]:
        found, left = set(), [start]
        while left:
            for node in graph.get(left.pop(), set()) - found:
                found.add(node)
                left.append(node)
        return found

    reach = {node: reached(node) for node in graph}
    together = {node: {other for other in there if node in reach.get(other, ())} for node, there in reach.items()}
    return sorted({tuple(sorted(group)) for group in together.values() if group})


def circles_of_modules(sources: Sources) -> list[tuple[str, ...]]:
    return circles(imported(sources, late=False))


def circles_of_folders(sources: Sources, late: bool = False) -> list[tuple[str, ...]]:
    graph = imported(sources, late)
    folders = ["", *(module.name for module in sources if module.is_package)]
    return [circle for folder in folders for circle in circles(side_by_side(graph, folder))]


def late_circles(sources: Sources) -> list[tuple[str, ...]]:
    """Circles that only an import inside a function closes."""
    return [
        c for c in circles(imported(sources, late=True)) + circles_of_folders(sources, late=True) if c not in ALLOWED
    ]


# What an import inside a function closes, and why it may.
ALLOWED = {
    # The command line lists the demo model's command where the repository has it; the demo model runs the product.
    ("demo_model", "sdxl_optim"),
}


def test_no_modules_import_in_a_circle():
    assert circles_of_modules(product()) == []


def test_no_folders_import_in_a_circle():
    assert circles_of_folders(product()) == []


def test_no_circle_hides_inside_functions():
    assert late_circles(product()) == []


# --- the checks can fail

BACK = "from sdxl_optim.planning import planted"


@pytest.mark.parametrize("line", [BACK, f"if True:\n    {BACK}", f"try:\n    {BACK}\nexcept ImportError:\n    pass"])
def test_a_circle_of_two_modules_is_seen(line):
    two = {"sdxl_optim/planning/planted.py": "from sdxl_optim.planning import planted2"}
    assert seen(circles_of_modules, two | {"sdxl_optim/planning/planted2.py": line}) == [
        ("sdxl_optim.planning.planted", "sdxl_optim.planning.planted2")
    ]


def test_a_circle_of_two_folders_is_seen_though_no_module_is_in_it():
    found = seen(circles_of_folders, {"sdxl_optim/settings/planted.py": "from sdxl_optim.planning import plan"})
    assert len(found) == 1
    assert {"sdxl_optim.planning", "sdxl_optim.settings"} <= set(found[0])


def test_a_circle_through_a_function_is_seen_apart():
    files = {
        "sdxl_optim/planning/planted.py": "from sdxl_optim.planning import planted2",
        "sdxl_optim/planning/planted2.py": f"def f():\n    {BACK}",
    }
    assert seen(circles_of_modules, files) == []
    assert seen(late_circles, files) == [("sdxl_optim.planning.planted", "sdxl_optim.planning.planted2")] * 2


def test_an_import_for_the_types_alone_closes_none():
    files = {
        "sdxl_optim/planning/planted.py": "from sdxl_optim.planning import planted2",
        "sdxl_optim/planning/planted2.py": f"if TYPE_CHECKING:\n    {BACK}",
    }
    assert seen(circles_of_modules, files) == []
