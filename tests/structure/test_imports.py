"""Who may import what: a line a folder, checked in the source, and in a subprocess for what an import really loads."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import pytest
from sources import ROOT, Module, Sources, product, seen

HOSTS = {"modules", "gradio", "launch", "diffusers", "transformers", "accelerate"}
OURS = "sdxl_optim"
VENDORS = {"onediff", "sfast", "torch_tensorrt"}
MEASURES = {"PIL", "numpy", "psutil", "skimage", "lpips", "tqdm", "torch", "jinja2", "matplotlib"}


@dataclass(frozen=True)
class Rule:
    """What the modules that `where` names (patterns) may import. The first rule that names a module is its rule.

    ours: folders and files of this repository, beside the module's own. libraries: what Python does not bring.
    late: further libraries, inside functions alone.
    """

    where: tuple[str, ...]
    ours: tuple[str, ...] = ()
    libraries: frozenset[str] = frozenset()
    late: frozenset[str] = frozenset()


def rule(where: str, ours: str = "", libraries: set[str] = frozenset(), late: set[str] = frozenset()) -> Rule:
    names = tuple(name if name == "demo_model" else f"{OURS}.{name}" for name in ours.split())
    return Rule(tuple(where.split()), names, frozenset(libraries), frozenset(late))


# What every stage speaks: the words of the settings, of the loop and of the report.
WORDS = "errors files wording settings sampling"
# By the names of the files, in whichever technique's folder.
TORCHLESS_TECHNIQUES = (
    "rules",
    "counts",
    "base",
    "positions",
    "calibration",
    "reuse",
    "attention",
    "backend",
    "cfg_cutoff",
)
RULES = (
    rule(f"{OURS} {OURS}.errors {OURS}.files", "errors wording"),
    rule(f"{OURS}.wording"),
    rule(f"{OURS}.settings*", "errors files wording"),
    rule(f"{OURS}.sampling*", "errors wording"),
    rule(f"{OURS}.unet*", "errors wording", {"torch"}),
    # A technique decides in files that know no torch; its functions on tensors stand in files that know torch alone.
    rule(f"{OURS}.techniques.*.tensors", "", {"torch"}),
    rule(
        " ".join(f"{OURS}.techniques*.{name}" for name in TORCHLESS_TECHNIQUES),
        f"{WORDS} techniques",
    ),
    rule(f"{OURS}.techniques*", f"{WORDS} unet techniques", {"torch"}),
    rule(f"{OURS}.planning*", f"{WORDS} techniques"),
    rule(f"{OURS}.report {OURS}.sentences", f"{WORDS} planning techniques report"),
    rule(
        f"{OURS}.backends*.kernels {OURS}.backends*.hopper",
        "errors backends",
        {"torch", "triton"},
    ),
    rule(f"{OURS}.backends*", f"{WORDS} unet techniques planning report backends", {"torch"}, VENDORS),
    rule(f"{OURS}.run", f"{WORDS} unet techniques planning report backends", {"torch"}),
    rule(f"{OURS}.bench*", f"{WORDS} report sentences bench", MEASURES),
    rule(
        f"{OURS}.hosts.webui*",
        f"{WORDS} unet techniques planning report sentences backends run bench hosts.webui hosts.family",
        {"torch", "numpy", "PIL", "safetensors", "fastapi", "modules", "gradio", "launch", "k_diffusion"},
    ),
    rule(f"{OURS}.hosts {OURS}.hosts.family", f"{WORDS} unet techniques planning report sentences backends run"),
    rule(
        f"{OURS}.hosts.standalone*",
        f"{WORDS} unet techniques planning report sentences backends run bench hosts.standalone demo_model",
        {"torch", "numpy", "PIL", "tqdm", "diffusers", "transformers", "accelerate", "huggingface_hub", "DeepCache"},
        {"safetensors"},
    ),
    rule(
        f"{OURS}.__main__ {OURS}.cli*",
        f"{WORDS} techniques planning report sentences backends bench cli hosts.standalone",
        late={"torch", "diffusers", "transformers", "accelerate", "tqdm"},
    ),
    rule(
        "demo_model*",
        f"{WORDS} unet techniques planning report sentences bench hosts.standalone demo_model",
        {"torch", "numpy", "PIL", "safetensors"},
        {"diffusers", "transformers", "tqdm", "matplotlib"},
    ),
)


def within(module: str, *folders: str) -> bool:
    return any(module == folder or module.startswith(f"{folder}.") for folder in folders)


def rule_of(module: str) -> Rule | None:
    return next((rule for rule in RULES if any(fnmatch(module, pattern) for pattern in rule.where)), None)


def imports_that_no_rule_allows(sources: Sources) -> list[str]:
    found = []
    for module in sources:
        rule = rule_of(module.name)
        if rule is None:
            found.append(f"{module}: no rule names it")
            continue
        for item in module.imports:
            if item.typing:  # loads nothing
                continue
            target = sources.target(item)
            top = item.module.split(".")[0]
            if target is not None and top in (OURS, "demo_model"):
                own = module.package if module.package != OURS else module.name
                allowed = target == OURS or within(target, own, *rule.ours)  # the package itself has its version alone
            else:
                allowed = top in sys.stdlib_module_names or top in rule.libraries or (item.late and top in rule.late)
            if not allowed:
                found.append(f"{module}:{item.line}: {target or item.module}")
    return found


def loaded_by(*modules: str, path: Path = ROOT) -> set[str]:
    """Top-level names, and the package's own modules, that importing `modules` leaves in sys.modules."""
    code = f"import sys; sys.path.insert(0, {str(path)!r})\n"
    code += "".join(f"import {module}\n" for module in modules)
    code += "print(*sys.modules, sep='\\n')"
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
    names = done.stdout.split()
    return {name.split(".")[0] for name in names} | {name for name in names if name.startswith(OURS)}


def names_of(module: Module) -> set[str]:
    """All names imported anywhere in a module, also inside functions."""
    return {item.module for item in module.imports} | {f"{i.module}.{i.name}" for i in module.imports if i.name}


def foreign(names: set[str]) -> set[str]:
    """Of imported names, the top-level ones that neither Python nor this package brings."""
    return {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) - {OURS}


def host_free() -> list[Module]:
    """The modules that know no host: all but the hosts' own, the measuring and the commands."""
    return [
        module
        for module in product()
        if within(module.name, OURS)
        and not within(module.name, *(f"{OURS}.{name}" for name in ("hosts", "bench", "cli", "__main__")))
    ]


TORCHLESS = ["settings", "planning.plan", "sampling.loop", "report", "errors"]


def needs_triton(module: Module) -> bool:
    """The modules of our kernels: they need it, and a torch that takes custom operators."""
    return "triton" in rule_of(module.name).libraries


# --- the rules


def test_every_import_is_one_that_its_folder_may_have():
    assert imports_that_no_rule_allows(product()) == []


def test_every_rule_is_of_something():
    unused = set(RULES) - {rule_of(module.name) for module in product()}
    assert not unused


def test_deciding_needs_no_torch():
    loaded = loaded_by(*(f"{OURS}.{name}" for name in TORCHLESS))
    assert "sdxl_optim.settings" in loaded
    assert not loaded & {"torch", "numpy", *HOSTS}
    assert not [name for name in loaded if name.startswith("sdxl_optim.hosts")]


def test_nothing_but_the_hosts_loads_a_host():
    modules = [module.name for module in host_free() if not needs_triton(module)]
    assert {"sdxl_optim.run", "sdxl_optim.techniques.deepcache.patch", "sdxl_optim.techniques.freeu.tensors"} <= set(
        modules
    )
    loaded = loaded_by(*modules)
    assert "torch" in loaded
    assert not loaded & HOSTS
    assert not [name for name in loaded if name.startswith("sdxl_optim.hosts")]


@pytest.mark.parametrize("module", host_free(), ids=str)
def test_the_source_names_no_host_either(module):
    names = names_of(module)
    assert not foreign(names) & HOSTS
    assert ("triton" in foreign(names)) == needs_triton(module)
    assert not [name for name in names if name.startswith("sdxl_optim.hosts")]
    if module.name.removeprefix("sdxl_optim.") in TORCHLESS:
        assert foreign(names) == set()
    if module.name.endswith(".tensors"):
        assert foreign(names) <= {"torch"}
        assert not [name for name in names if name.startswith("sdxl_optim")]


def test_each_host_is_named_in_its_own_folder_alone():
    for module in product().inside(OURS):
        names = names_of(module)
        if not within(module.name, "sdxl_optim.hosts.webui"):
            assert not foreign(names) & {"modules", "gradio", "launch"}, module
            assert not [name for name in names if name.startswith("sdxl_optim.hosts.webui")], module
        if not within(module.name, "sdxl_optim.hosts.standalone", "sdxl_optim.cli"):
            assert not foreign(names) & {"diffusers", "transformers", "accelerate"}, module
            assert not [name for name in names if name.startswith("sdxl_optim.hosts.standalone")], module


FORGE = "sdxl_optim.hosts.webui.forge"


def who_asks(sources: Sources) -> list[str]:
    """The modules that ask which WebUI it is."""
    return [m.path for m in sources if any(name in m.source for name in ("modules_forge", "ldm_patched"))]


def who_chooses(sources: Sources) -> list[str]:
    """The modules that import Forge's folder from outside."""
    return [m.path for m in sources if not within(m.name, FORGE) and any(within(name, FORGE) for name in names_of(m))]


def test_one_place_asks_which_webui_it_is_and_one_chooses_by_it():
    assert who_asks(product()) == ["sdxl_optim/hosts/webui/family.py"]
    assert who_chooses(product()) == ["sdxl_optim/hosts/webui/adapter.py"]


def who_loads_the_demo_model(sources: Sources) -> list[str]:
    return [m.path for m in sources.inside(OURS) if "demo_model" in foreign(names_of(m))]


def test_one_place_loads_the_demo_model():
    assert who_loads_the_demo_model(product()) == ["sdxl_optim/hosts/standalone/demo_model.py"]


# --- the checks can fail


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("sdxl_optim/settings/planted.py", "import torch"),
        ("sdxl_optim/settings/planted.py", "def f():\n    from ..planning import plan"),
        ("sdxl_optim/sampling/planted.py", "from sdxl_optim.planning.plan import Plan"),
        ("sdxl_optim/techniques/freeu/rules.py", "import torch"),
        ("sdxl_optim/techniques/freeu/rules.py", "from sdxl_optim.unet.layout import Layout"),
        ("sdxl_optim/techniques/planted/positions.py", "import torch"),
        ("sdxl_optim/techniques/planted/tensors.py", "from sdxl_optim.unet.layout import Layout"),
        ("sdxl_optim/techniques/planted/patch.py", "from sdxl_optim.run import Run"),
        ("sdxl_optim/planning/planted.py", "import torch"),
        ("sdxl_optim/unet/planted.py", "from sdxl_optim.techniques.freeu import patch"),
        ("sdxl_optim/backends/planted.py", "import triton"),
        ("sdxl_optim/backends/planted.py", "def f():\n    import triton.language as tl"),
        ("sdxl_optim/backends/planted.py", "def f():\n    from modules import shared"),
        ("sdxl_optim/bench/planted.py", "import gradio as gr"),
        ("sdxl_optim/bench/planted.py", "from sdxl_optim.hosts.webui.family import NAME"),
        ("sdxl_optim/hosts/webui/planted.py", "import diffusers"),
        ("sdxl_optim/hosts/webui/planted.py", "from sdxl_optim.hosts.standalone import models"),
        ("sdxl_optim/hosts/webui/planted.py", "import demo_model"),
        ("sdxl_optim/hosts/standalone/planted.py", "from modules import shared"),
        ("sdxl_optim/hosts/standalone/planted.py", "from sdxl_optim.cli import options"),
        ("sdxl_optim/cli/planted.py", "import torch"),
        ("sdxl_optim/cli/planted.py", "def f():\n    import demo_model"),
        ("demo_model/planted.py", "from sdxl_optim.cli import options"),
        ("sdxl_optim/report_of_the_rest.py", "import os"),
        ("demo_model/planted.py", "import gradio"),
    ],
)
def test_a_planted_import_is_seen(path, line):
    found = seen(imports_that_no_rule_allows, {path: line})
    assert len(found) == 1
    assert found[0].startswith(path.removesuffix(".py").replace("/", "."))


def test_an_import_for_the_types_alone_is_free():
    line = "if TYPE_CHECKING:\n    from sdxl_optim.run import Run"
    assert seen(imports_that_no_rule_allows, {"sdxl_optim/planning/planted.py": line}) == []


def test_a_second_place_that_asks_or_chooses_is_seen():
    more = product().planted(
        {
            "sdxl_optim/hosts/webui/planted.py": "def f():\n    from .forge import vae",
            "sdxl_optim/bench/planted.py": "find_spec('modules_forge')",
            "sdxl_optim/hosts/standalone/planted.py": "def f():\n    from demo_model import scenes",
        }
    )
    assert "sdxl_optim/hosts/webui/planted.py" in who_chooses(more)
    assert "sdxl_optim/bench/planted.py" in who_asks(more)
    assert "sdxl_optim/hosts/standalone/planted.py" in who_loads_the_demo_model(more)


def test_the_subprocess_sees_what_is_imported(tmp_path):
    (tmp_path / "modules.py").write_text("")
    (tmp_path / "offender.py").write_text("import sdxl_optim.unet\nimport modules\n")
    (tmp_path / "sdxl_optim").mkdir()
    (tmp_path / "sdxl_optim" / "__init__.py").write_text("")
    (tmp_path / "sdxl_optim" / "unet.py").write_text("import sdxl_optim.hosts\n")
    (tmp_path / "sdxl_optim" / "hosts.py").write_text("")
    loaded = loaded_by("offender", path=tmp_path)
    assert {"modules", "sdxl_optim.hosts"} <= loaded
    with pytest.raises(subprocess.CalledProcessError):
        loaded_by("not_there", path=tmp_path)


def test_the_reader_of_sources_sees_late_imports():
    source = """
def f():
    from modules import shared
    import gradio.components as c
    from sdxl_optim import hosts as host
    from ..hosts import webui
"""
    module = Module("sdxl_optim/ops/planted.py", source)
    names = names_of(module)
    assert all(item.late for item in module.imports)
    assert foreign(names) == {"modules", "gradio"}
    assert {"sdxl_optim.hosts", "sdxl_optim.hosts.webui"} <= names
