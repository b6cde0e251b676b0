"""A name that begins with an underscore is used in its own file alone."""

from __future__ import annotations

import ast
from functools import cache
from importlib.util import resolve_name

import pytest
from sources import BESIDE, ROOTS, Module, Sources, product, seen

BUILTIN = {"getattr", "setattr", "hasattr", "delattr", "replaced"}


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


@cache
def owned(module: Module) -> set[str]:
    """The private names that a file defines: functions, classes, variables, and attributes of its own classes."""
    found = set()
    for node in ast.walk(module.tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_self(node.value):
            found.add(node.attr)
    return set(filter(is_private, found))


def is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


@cache
def used(module: Module) -> list[tuple[int, str]]:
    """The private names that a file takes from others, with their lines: imported, or of an object that is not self."""
    found = []
    for node in ast.walk(module.tree):
        if isinstance(node, ast.ImportFrom):
            if resolve_name("." * node.level + (node.module or ""), module.package).split(".")[0] in ROOTS:
                found += ((node.lineno, alias.name) for alias in node.names if is_private(alias.name))
        elif isinstance(node, ast.Attribute) and is_private(node.attr) and not is_self(node.value):
            found.append((node.lineno, node.attr))
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in BUILTIN:
            name = node.args[1] if len(node.args) > 1 else None
            if isinstance(name, ast.Constant) and is_private(str(name.value)) and not is_self(node.args[0]):
                found.append((node.lineno, name.value))
    return found


def foreign_private_names(sources: Sources) -> list[str]:
    """Uses of a private name that another file of ours defines, and the using one does not."""
    names = {module: owned(module) for module in sources}
    ours = set().union(*names.values())
    found = []
    for module in sources:
        for line, name in used(module):
            if name in ours - names[module]:
                found.append(f"{module.path}:{line}: {name}")
    return found


def test_no_private_name_leaves_its_file():
    assert foreign_private_names(product(ROOTS + BESIDE)) == []


# --- the check can fail

OWNER = "def _hidden(): ...\nclass A:\n    def __init__(self):\n        self._inside = 1\n"


@pytest.mark.parametrize(
    "use",
    [
        "from sdxl_optim.planning.owner import _hidden",
        "from .owner import _hidden",
        "from sdxl_optim.planning import owner\n\nowner._hidden()",
        "def f(a):\n    return a._inside",
        "def f(a):\n    a._inside = 2",
        "def f(a):\n    return getattr(a, '_inside')",
        "class B:\n    def f(self):\n        return self.a._inside",
    ],
)
def test_a_use_from_another_file_is_seen(use):
    files = {"sdxl_optim/planning/owner.py": OWNER, "sdxl_optim/planning/planted.py": use}
    [found] = seen(foreign_private_names, files)
    assert found.startswith("sdxl_optim/planning/planted.py:")


@pytest.mark.parametrize(
    "use",
    [
        "class B:\n    def f(self):\n        self._inside = 1",  # its own of the same name
        "def f(tensor):\n    return tensor._version",  # somebody else's
    ],
)
def test_what_is_its_own_is_not(use):
    files = {"sdxl_optim/planning/owner.py": OWNER, "sdxl_optim/planning/planted.py": use}
    assert not seen(foreign_private_names, files)
