"""The product's source as data: its modules, what each imports and where, as the rules of this folder ask for it."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.util import resolve_name
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROOTS = ("sdxl_optim", "demo_model")
BESIDE = ("scripts", "benchmarks")  # programs around the product, which hold to its names


@dataclass(frozen=True)
class Import:
    """One imported name. module: absolute; name: what is taken from it, or None for `import module`.

    bound: the name that it has in the file. late: inside a function. typing: under `if TYPE_CHECKING`, so never run.
    """

    module: str
    name: str | None
    bound: str
    late: bool
    typing: bool
    line: int


class Module:
    """One file. name: dotted, a package's own without `__init__`."""

    def __init__(self, path: str, source: str):
        self.path, self.source = path, source
        parts = path.removesuffix(".py").split("/")
        self.is_package = parts[-1] == "__init__"
        self.name = ".".join(parts[:-1] if self.is_package else parts)
        self.package = self.name if self.is_package else self.name.rpartition(".")[0]

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.source, self.path)

    @cached_property
    def imports(self) -> list[Import]:
        return list(self._imports(self.tree.body, late=False, typing=False))

    def _imports(self, nodes, late: bool, typing: bool) -> Iterator[Import]:
        for node in nodes:
            if isinstance(node, ast.Import):
                for alias in node.names:
                    yield Import(alias.name, None, alias.asname or alias.name.split(".")[0], late, typing, node.lineno)
            elif isinstance(node, ast.ImportFrom):
                module = resolve_name("." * node.level + (node.module or ""), self.package)
                for alias in node.names:
                    yield Import(module, alias.name, alias.asname or alias.name, late, typing, node.lineno)
            elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                yield from self._imports(node.body, late, True)
                yield from self._imports(node.orelse, late, typing)
            else:
                inner = late or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
                yield from self._imports(ast.iter_child_nodes(node), inner, typing)

    def __repr__(self) -> str:
        return self.name


class Sources:
    """All modules by name, with a planted file where a test of a rule wants one."""

    def __init__(self, modules: dict[str, Module]):
        self.modules = modules

    def __iter__(self) -> Iterator[Module]:
        return iter(self.modules.values())

    def planted(self, files: dict[str, str]) -> Sources:
        """The same with further files, from their paths to their sources."""
        modules = [Module(path, source) for path, source in files.items()]
        return Sources(self.modules | {module.name: module for module in modules})

    def target(self, found: Import) -> str | None:
        """The module of ours that an import loads, or None for somebody else's."""
        whole = f"{found.module}.{found.name}"
        if found.name and whole in self.modules:
            return whole
        return found.module if found.module in self.modules else None

    def inside(self, folder: str) -> list[Module]:
        """The modules of a folder (dotted), or the one module of that name."""
        return [module for module in self if module.name == folder or module.name.startswith(folder + ".")]


@cache
def said_of_the_product(breaches: Callable[[Sources], list]) -> list:
    return breaches(product())


def seen(breaches: Callable[[Sources], list], files: dict[str, str]) -> list:
    """What a rule says of planted files, and of these alone."""
    said = said_of_the_product(breaches)
    return [breach for breach in breaches(product().planted(files)) if breach not in said]


@cache
def product(roots: tuple[str, ...] = ROOTS) -> Sources:
    files = sorted(path for root in roots for path in (ROOT / root).rglob("*.py"))
    modules = [Module(path.relative_to(ROOT).as_posix(), path.read_text("utf-8")) for path in files]
    return Sources({module.name: module for module in modules})
