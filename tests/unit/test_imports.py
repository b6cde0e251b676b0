"""Who may import what, checked in a subprocess for what an import loads and in the source for later ones."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib.util import resolve_name
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "sdxl_optim"
WEBUI, FORGE = PACKAGE / "hosts" / "webui", PACKAGE / "hosts" / "webui" / "forge"
TORCHLESS = ["settings", "planning.plan", "sampling.loop", "report", "errors"]
# The modules that need it, and a torch that takes custom operators.
TRITON = {PACKAGE / "backends" / name for name in ("kernels.py", "hopper.py")}
HOSTS = {"modules", "gradio", "diffusers", "transformers", "accelerate", "launch"}


def loaded_by(*modules: str, path: Path = ROOT) -> set[str]:
    """Top-level names, and the package's own modules, that importing `modules` leaves in sys.modules."""
    code = f"import sys; sys.path.insert(0, {str(path)!r})\n"
    code += "".join(f"import {module}\n" for module in modules)
    code += "print(*sys.modules, sep='\\n')"
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
    names = done.stdout.split()
    return {name.split(".")[0] for name in names} | {name for name in names if name.startswith("sdxl_optim")}


def host_free_files() -> list[Path]:
    ours = ("settings", "sampling", "planning", "techniques", "unet", "backends")
    files = [p for p in PACKAGE.glob("*.py") if p.stem != "__main__"]
    return sorted(files + [p for folder in ours for p in (PACKAGE / folder).rglob("*.py")])


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports_in(source: str, package: str = "") -> set[str]:
    """All names imported anywhere in a module of `package`, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = resolve_name("." * node.level + (node.module or ""), package)
            found |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return found


def imports_of(path: Path) -> set[str]:
    return imports_in(path.read_text(encoding="utf-8"), ".".join(path.relative_to(ROOT).parent.parts))


def foreign(names: set[str]) -> set[str]:
    """Of imported names, the top-level ones that neither Python nor this package brings."""
    tops = {name.split(".")[0] for name in names}
    return tops - set(sys.stdlib_module_names) - {"sdxl_optim"}


# --- the rules


def test_deciding_needs_no_torch():
    loaded = loaded_by(*(f"sdxl_optim.{name}" for name in TORCHLESS))
    assert "sdxl_optim.settings" in loaded
    assert not loaded & {"torch", "numpy", *HOSTS}
    assert not [name for name in loaded if name.startswith("sdxl_optim.hosts")]


def test_nothing_but_the_hosts_loads_a_host():
    modules = [module_name(path) for path in host_free_files() if path not in TRITON]
    assert {"sdxl_optim.run", "sdxl_optim.techniques.deepcache.patch", "sdxl_optim.techniques.freeu.tensors"} <= set(
        modules
    )
    loaded = loaded_by(*modules)
    assert "torch" in loaded
    assert not loaded & HOSTS
    assert not [name for name in loaded if name.startswith("sdxl_optim.hosts")]


@pytest.mark.parametrize("path", host_free_files(), ids=module_name)
def test_the_source_names_no_host_either(path):
    names = imports_of(path)
    assert not foreign(names) & HOSTS
    assert ("triton" in foreign(names)) == (path in TRITON)
    assert not [name for name in names if name.startswith("sdxl_optim.hosts")]
    if module_name(path).removeprefix("sdxl_optim.") in TORCHLESS:
        assert foreign(names) == set()
    if path.stem == "tensors":
        assert foreign(names) <= {"torch"}
        assert not [name for name in names if name.startswith("sdxl_optim")]


def test_each_host_is_named_in_its_own_folder_alone():
    for path in PACKAGE.rglob("*.py"):
        names = imports_of(path)
        if not path.is_relative_to(WEBUI) and not path.is_relative_to(FORGE):
            assert not foreign(names) & {"modules", "gradio", "launch"}, path
            assert not [name for name in names if name.startswith("sdxl_optim.hosts.webui")], path


def test_one_place_asks_which_webui_it_is_and_one_chooses_by_it():
    asking, choosing = [], []
    for path in PACKAGE.rglob("*.py"):
        if any(name in path.read_text("utf-8") for name in ("modules_forge", "ldm_patched")):
            asking.append(path)
        if (
            any(name.startswith("sdxl_optim.hosts.webui.forge") for name in imports_of(path))
            and FORGE not in path.parents
        ):
            choosing.append(path)
    assert asking == [WEBUI / "family.py"]
    assert choosing == [WEBUI / "adapter.py"]


def test_one_place_loads_the_demo_model():
    naming = [path for path in PACKAGE.rglob("*.py") if "demo_model" in foreign(imports_of(path))]
    assert naming == [PACKAGE / "hosts" / "standalone" / "demo_model.py"]


# --- the checks can fail


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
    names = imports_in(source, "sdxl_optim.ops")
    assert foreign(names) == {"modules", "gradio"}
    assert {"sdxl_optim.hosts", "sdxl_optim.hosts.webui"} <= names
