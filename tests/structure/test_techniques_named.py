"""A technique is named in its own folder, in the list, in the settings and where the page places them: what iterates
over the techniques knows none of them."""

from __future__ import annotations

import ast
import re

import pytest
from sources import Sources, product, seen

# What goes through all techniques alike, so that a further one is no edit there.
KNOWS_NONE = ("sdxl_optim.planning", "sdxl_optim.run", "sdxl_optim.report", "sdxl_optim.wording")
NAMES = re.compile(r"freeu|deep_?cache|cfg_?cutoff|cfg cutoff", re.IGNORECASE)


def techniques_named(sources: Sources) -> list[str]:
    """Identifiers and texts, docstrings and comments aside, that name a technique."""
    found = []
    for folder in KNOWS_NONE:
        for module in sources.inside(folder):
            prose = docstrings(module.tree)
            for node in ast.walk(module.tree):
                if node not in prose:
                    found += [f"{module.path}:{node.lineno}: {name}" for name in words_of(node) if NAMES.search(name)]
    return found


def docstrings(tree: ast.Module) -> set[ast.AST]:
    return {n.value for n in ast.walk(tree) if isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant)}


def words_of(node: ast.AST) -> list[str]:
    """The names and texts that a node itself has, without those of its parts."""
    fields = [value for _, value in ast.iter_fields(node) if isinstance(value, str)]
    return fields if hasattr(node, "lineno") else []


def test_what_goes_through_all_techniques_names_none():
    assert techniques_named(product()) == []


# --- the check can fail


@pytest.mark.parametrize("path", ["sdxl_optim/planning/planted.py", "sdxl_optim/run/planted.py"])
@pytest.mark.parametrize(
    "source",
    [
        "from sdxl_optim.techniques.freeu.patch import attached",
        "from sdxl_optim.techniques import deepcache",
        "def f(plan):\n    return plan.freeu",
        "def f(*, cfg_cutoff):\n    pass",
        "def f(plan):\n    return plan(deepcache=True)",
        "class DeepCacheCounts: ...",
        "TITLE = 'CFG cutoff'",
        "def f(n):\n    return f'{n} steps of FreeU'",
    ],
)
def test_a_named_technique_is_seen(path, source):
    assert len(seen(techniques_named, {path: source})) >= 1


def test_prose_may_give_one_as_an_example():
    source = '"""As FreeU does."""\n\n\ndef f():\n    """Of DeepCache, say."""\n    # CFG cutoff\n'
    assert not seen(techniques_named, {"sdxl_optim/planning/planted.py": source})
