"""Where state lives: in objects that somebody owns. No function writes a module's names, the WebUI's side has no empty
container at the head of a module to be filled later, and a request of the host's bears one attribute of ours."""

from __future__ import annotations

import ast

import pytest
from sources import Module, Sources, product, seen

WEBUI = "sdxl_optim.hosts.webui"
FILLED_LATER = {"dict", "list", "set", "defaultdict", "deque", "Counter", "WeakSet", "WeakKeyDictionary"}
# The host's own attributes of its own objects, which are changed for a run or a plan.
HOSTS_OWN = {
    "p": {"steps", "override_settings", "extra_generation_params", "setup_prompts", "is_hr_pass", "hr_scheduler",
          "refiner_checkpoint_info", "override_settings_restore_afterwards", "is_api", "scripts", "script_args"},
    "sampler": {"launch_sampling", "create_noise_sampler"},
    "denoiser": set(),
}  # fmt: skip


def writers_of_globals(sources: Sources) -> list[str]:
    return [f"{m}:{n.lineno}" for m in sources for n in ast.walk(m.tree) if isinstance(n, ast.Global)]


def states_of_modules(sources: Sources) -> list[str]:
    """Names of a module that are bound to an empty container."""
    found = []
    for module in sources.inside(WEBUI):
        for node in module.tree.body:
            value = node.value if isinstance(node, (ast.Assign, ast.AnnAssign)) else None
            empty = isinstance(value, (ast.Dict, ast.List, ast.Set)) and not ast.unparse(value).strip("{}[]")
            name = getattr(value.func, "attr", getattr(value.func, "id", "")) if isinstance(value, ast.Call) else ""
            if empty or name in FILLED_LATER:
                found.append(f"{module}:{node.lineno}")
    return found


def attributes_of_ours(sources: Sources) -> list[str]:
    """Attributes that are put on the host's request, sampler or denoiser and are none of its own."""
    found = []
    for module in sources.inside(WEBUI):
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and isinstance(node.value, ast.Name):
                if node.attr not in HOSTS_OWN.get(node.value.id, {node.attr}):
                    found.append(f"{module}: {node.value.id}.{node.attr}")
            elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "setattr":
                owner, name = map(ast.unparse, node.args[:2])
                if owner in HOSTS_OWN and not put_back(module, name):
                    found.append(f"{module}: {owner}.{name}")
    return found


def put_back(module: Module, name: str) -> bool:
    """The functions of the sampler that foresight.py runs under names of its own."""
    return (module.name, name) == (f"{WEBUI}.foresight", "name")


def test_no_function_writes_a_modules_names():
    assert writers_of_globals(product()) == []


def test_the_webuis_side_keeps_no_state_in_modules():
    assert states_of_modules(product()) == []


def test_one_attribute_of_ours_is_on_a_request():
    assert attributes_of_ours(product()) == [f"{WEBUI}.request: p.ATTRIBUTE"]


# --- the checks can fail

PLANTED = "sdxl_optim/hosts/webui/planted.py"


def test_a_global_is_seen():
    files = {"sdxl_optim/planted.py": "x = 1\n\n\ndef f():\n    global x\n    x = 2\n"}
    assert seen(writers_of_globals, files) == ["sdxl_optim.planted:5"]


@pytest.mark.parametrize("value", ["{}", "[]", "set()", "weakref.WeakSet()", "dict()"])
def test_a_state_is_seen(value):
    assert seen(states_of_modules, {PLANTED: f"_known: object = {value}\nNAMES = {{'a': 1}}\n"}) == [
        f"{WEBUI}.planted:1"
    ]


@pytest.mark.parametrize(
    ("line", "name"), [("p.sdxl_optim_more = 1", "p.sdxl_optim_more"), ("setattr(sampler, RUN, 1)", "sampler.RUN")]
)
def test_another_attribute_is_seen(line, name):
    found = attributes_of_ours(product().planted({PLANTED: line}))
    assert f"{WEBUI}.planted: {name}" in found
