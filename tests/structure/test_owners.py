"""Who owns what changes: objects do, not modules; and a host's objects, modules and classes are left as they are."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache

import pytest
from sources import Module, Sources, product, seen

OURS, WEBUI = "sdxl_optim", "sdxl_optim.hosts.webui"


# --- state


def global_statements(sources: Sources) -> list[str]:
    return [
        f"{module.path}: global {name}"
        for module in sources.inside(OURS)
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Global)
        for name in node.names
    ]


CONTAINERS = {"list", "dict", "set", "deque", "defaultdict", "Counter", "OrderedDict", "bytearray"}
CONTAINERS |= {"WeakSet", "WeakKeyDictionary", "WeakValueDictionary"}
CHANGES = {"append", "extend", "insert", "remove", "pop", "clear", "sort", "reverse", "appendleft", "popleft"}
CHANGES |= {"add", "discard", "update", "setdefault", "popitem"}

# What modules keep all the same, and why.
STATE = {
    "sdxl_optim.hosts.standalone.backend.executions": "the process is the host, and owns what is prepared",
    "sdxl_optim.settings.presets.known": "the choices of a setting, which its frozen declaration points to",
}


def bound(module: Module) -> dict[str, ast.expr]:
    """The names that the lines of a module itself give to values, also under an `if` or a `try`."""
    found, left = {}, list(module.tree.body)
    while left:
        node = left.pop()
        if isinstance(node, (ast.If, ast.Try, ast.With)):
            left += [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)]
        targets = node.targets if isinstance(node, ast.Assign) else []
        targets += [node.target] if isinstance(node, ast.AnnAssign) and node.value else []
        for target in targets:
            for name in ast.walk(target):
                if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store):
                    found[name.id] = node.value
    return found


def is_empty_container(value: ast.expr) -> bool:
    if isinstance(value, ast.Call):
        name = ast.unparse(value.func).split("[")[0].split(".")[-1]
        return name in CONTAINERS and not any(isinstance(arg, (ast.List, ast.Dict, ast.Set)) for arg in value.args)
    return isinstance(value, (ast.List, ast.Dict)) and not (value.elts if isinstance(value, ast.List) else value.keys)


def is_lock(value: ast.expr) -> bool:
    return ast.unparse(value) in ("threading.Lock()", "threading.RLock()", "Lock()", "RLock()")


def says_that_it_changes(name: str) -> bool:
    """Neither a CONSTANT nor a Type, nor Python's own."""
    bare = name.lstrip("_")
    return not bare[:1].isupper() and not name.startswith("__")


def names_changed(module: Module) -> set[str]:
    """Names whose value a file changes anywhere: `name[…] = `, `del name[…]`, `name.x = `, `name.append(…)`."""
    found = set()
    for node in ast.walk(module.tree):
        target = None
        if isinstance(node, (ast.Attribute, ast.Subscript)) and isinstance(node.ctx, (ast.Store, ast.Del)):
            target = node.value
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in CHANGES:
            target = node.func.value
        if isinstance(target, ast.Name):
            found.add(target.id)
    return found


@cache
def state(module: Module) -> list[str]:
    """What a module keeps at its own level that changes, or by its form is there to be changed."""
    changed = names_changed(module)
    return [
        f"{module}.{name}"
        for name, value in bound(module).items()
        if name != "log"
        and not is_lock(value)
        and (says_that_it_changes(name) or is_empty_container(value) or name in changed)
    ]


def state_of_modules(sources: Sources) -> list[str]:
    return [name for module in sources.inside(OURS) for name in state(module) if name not in STATE]


def test_no_function_rebinds_a_name_of_its_module():
    assert global_statements(product()) == []


def test_no_module_keeps_state():
    assert state_of_modules(product()) == []


def test_what_is_excepted_is_there():
    """An exception that nothing needs any more goes."""
    assert STATE.keys() <= {name for module in product().inside(OURS) for name in state(module)}
    assert SET_ELSEWHERE.keys() <= {where for where, _ in changes_to_imported(product())}


# --- what is not ours

# Where it looks so, and why it may.
SET_ELSEWHERE = {
    "sdxl_optim.backends.inductor: os.environ": "torch and Triton read their folders there alone; it is put back",
    "sdxl_optim.hosts.webui.extension: log": "no module: the package's own log",
    "sdxl_optim.hosts.webui.host_options: opts": "no module: the object of the host's options",
}


@cache
def set_on_imported(module: Module) -> list[str]:
    """The imported modules and classes whose attributes a file sets, by whichever way.

    Of a path that begins with an imported name (`shared.opts.x`) only the whole is known here: a class by its capital
    letter, and of torch and Python's own modules everything is the process's.
    """
    imported = {item.bound: item for item in module.imports if item.module != "__future__"}
    found = []
    for target in targets(module):
        root = target
        while isinstance(root, (ast.Attribute, ast.Subscript)):
            root = root.value
        if not isinstance(root, ast.Name) or root.id not in imported:
            if called(target) == "type":
                found.append(ast.unparse(target))
            continue
        item = imported[root.id]
        whole = ast.unparse(target)
        process_wide = item.module.split(".")[0] in ("torch", "os", "sys", "builtins", "gc", "warnings")
        if target is root or process_wide or whole.rpartition(".")[2][:1].isupper():
            found.append(whole)
    return found


def targets(module: Module) -> Iterator[ast.expr]:
    """The objects on which a file sets or deletes an attribute or an item, or replaces one."""
    for node in ast.walk(module.tree):
        if isinstance(node, (ast.Attribute, ast.Subscript)) and isinstance(node.ctx, (ast.Store, ast.Del)):
            yield node.value
        elif isinstance(node, ast.Call) and node.args and called(node) in ("setattr", "delattr", "replaced"):
            yield node.args[0]


def called(node: ast.expr) -> str:
    """The last name of what is called: `f` of `a.b.f(…)`."""
    return ast.unparse(node.func).split(".")[-1] if isinstance(node, ast.Call) else ""


def changes_to_imported(sources: Sources) -> list[tuple[str, str]]:
    return [(f"{module}: {name}", name) for module in sources.inside(OURS) for name in set_on_imported(module)]


def set_on_modules_or_classes(sources: Sources) -> list[str]:
    return sorted({where for where, _ in changes_to_imported(sources) if where not in SET_ELSEWHERE})


def test_nothing_is_set_on_a_module_or_a_class():
    assert set_on_modules_or_classes(product()) == []


# --- on the host's objects

NAME = "sdxl_optim"


def attributes_of_ours(sources: Sources) -> list[str]:
    """What the hosts' folders set on objects that are not ours: the distinct names that begin with ours.

    By setattr, by vars(…)[…], or as an attribute; names also by a constant, from wherever it is imported.
    """
    found = set()
    for module in sources.inside(f"{OURS}.hosts"):
        for node in ast.walk(module.tree):
            name = None
            if called(node) == "setattr":
                name = text_of(sources, module, node.args[1])
            elif isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store):
                if called(node.value) == "vars" or ast.unparse(node.value).endswith(".__dict__"):
                    name = text_of(sources, module, node.slice)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                name = node.attr
            if name is not None and name.lstrip("_").startswith(NAME):
                found.add(name)
    return sorted(found)


def text_of(sources: Sources, module: Module, node: ast.expr) -> str | None:
    """A string, or what the constant of that name holds."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        owner = next((sources.target(i) for i in module.imports if i.bound == node.value.id), None)
        return text_of(sources, sources.modules[owner], ast.Name(node.attr)) if owner else None
    if not isinstance(node, ast.Name):
        return None
    if node.id in bound(module):
        return text_of(sources, module, bound(module)[node.id])
    owner = next((i.module for i in module.imports if i.bound == node.id and i.module in sources.modules), None)
    name = next((i.name for i in module.imports if i.bound == node.id), None)
    return text_of(sources, sources.modules[owner], ast.Name(name)) if owner else None


# One on each.
ON_HOSTS_OBJECTS = {
    "sdxl_optim": "the request, on `p`",
    "sdxl_optim_loads_into_main_memory": "on the flags that the WebUI was started with",
}


def further_attributes(sources: Sources) -> list[str]:
    return [name for name in attributes_of_ours(sources) if name not in ON_HOSTS_OBJECTS]


def test_a_hosts_object_has_one_attribute_of_ours_at_most():
    assert further_attributes(product()) == []


# --- the checks can fail

FILE = "sdxl_optim/hosts/webui/planted.py"


@pytest.mark.parametrize(
    ("rule", "source", "what"),
    [
        (global_statements, "A = 1\ndef f():\n    global A\n    A = 2", f"{FILE}: global A"),
        (state_of_modules, "active: list[int] = [1]", f"{WEBUI}.planted.active"),
        (state_of_modules, "KEPT = {}", f"{WEBUI}.planted.KEPT"),
        (state_of_modules, "KEPT: dict[str, int] = dict()", f"{WEBUI}.planted.KEPT"),
        (state_of_modules, "KEPT = weakref.WeakSet[int]()", f"{WEBUI}.planted.KEPT"),
        (state_of_modules, "if True:\n    KEPT = []", f"{WEBUI}.planted.KEPT"),
        (state_of_modules, "KEPT = [1]\ndef f():\n    KEPT[0] = 2", f"{WEBUI}.planted.KEPT"),
        (state_of_modules, "KEPT = {1: 2}\ndef f():\n    KEPT.update(a=1)", f"{WEBUI}.planted.KEPT"),
        (state_of_modules, "KEPT = object()\ndef f():\n    KEPT.field = 1", f"{WEBUI}.planted.KEPT"),
        (state_of_modules, "_job = None", f"{WEBUI}.planted._job"),
    ],
)
def test_planted_state_is_seen(rule, source, what):
    assert seen(rule, {FILE: source}) == [what]


@pytest.mark.parametrize(
    "source",
    [
        "A = {1: 2}\nB = (3,)\nAlias = dict[str, int]",
        "log = getLogger()",
        "def f():\n    found = []\n    found.append(1)",
    ],
)
def test_what_does_not_change_is_no_state(source):
    assert seen(state_of_modules, {FILE: source}) == []


@pytest.mark.parametrize(
    ("source", "what"),
    [
        ("from modules import sd_models\nsd_models.load = f", "sd_models"),
        ("from modules import sd_models\ndef f():\n    setattr(sd_models, 'load', f)", "sd_models"),
        ("from modules import sd_models\ndef f():\n    with replaced(sd_models, 'load', g): ...", "sd_models"),
        ("import modules.sd_models as m\ndef f():\n    del m.load", "m"),
        ("from modules.processing import Processed\nProcessed.js = f", "Processed"),
        (
            "from modules import processing\ndef f():\n    setattr(processing.Processed, 'js', f)",
            "processing.Processed",
        ),
        ("import torch\ndef f():\n    torch.nn.functional.silu = f", "torch.nn.functional"),
        ("import os\ndef f():\n    os.environ['A'] = '1'", "os.environ"),
        ("from sdxl_optim.hosts.webui import family\nfamily.NAME = 'A'", "family"),
        ("def f(p):\n    setattr(type(p), 'js', f)", "type(p)"),
    ],
)
def test_what_is_set_on_a_module_or_a_class_is_seen(source, what):
    assert seen(set_on_modules_or_classes, {FILE: source}) == [f"{WEBUI}.planted: {what}"]


@pytest.mark.parametrize(
    "source",
    [
        "from modules import shared\ndef f():\n    shared.opts.x = 1",  # an object, reached through a module
        "def f(p):\n    p.x = 1",
        "from modules import shared\ndef f():\n    return shared.opts.x",
    ],
)
def test_what_is_set_on_an_object_is_not(source):
    assert seen(set_on_modules_or_classes, {FILE: source}) == []


@pytest.mark.parametrize(
    "source",
    [
        "def f(p):\n    p.sdxl_optim_more = 1",
        "def f(p):\n    setattr(p, 'sdxl_optim_more', 1)",
        "MORE = 'sdxl_optim_more'\ndef f(p):\n    setattr(p, MORE, 1)",
        "MORE = 'sdxl_optim_more'\ndef f(p):\n    vars(p)[MORE] = 1",
        "def f(p):\n    p.__dict__['sdxl_optim_more'] = 1",
        "from .planted2 import MORE as M\ndef f(p):\n    setattr(p, M, 1)",
        "from . import planted2\ndef f(p):\n    setattr(p, planted2.MORE, 1)",
    ],
)
def test_a_further_attribute_is_seen(source):
    files = {FILE: source, FILE.replace("planted", "planted2"): "MORE = 'sdxl_optim_more'"}
    assert seen(further_attributes, files) == ["sdxl_optim_more"]
