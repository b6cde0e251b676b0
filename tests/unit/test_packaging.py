"""What an installation and an archive hold."""

from __future__ import annotations

import sys
from fnmatch import fnmatch
from importlib import import_module
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
FOR_THE_WEBUI = ("install.py", "javascript", "localizations", "scripts", "sdxl_optim", "style.css")


def test_files_that_are_no_modules_are_installed_too():
    patterns = PROJECT["tool"]["setuptools"]["package-data"]["*"]
    for path in (ROOT / "sdxl_optim").rglob("*.*"):
        if path.is_file() and path.suffix not in (".py", ".pyc"):
            assert any(fnmatch(path.name, pattern) for pattern in patterns), path


def test_the_installed_command_is_the_modules():
    module, name = PROJECT["project"]["scripts"]["sdxl-optim"].split(":")
    assert getattr(import_module(module), name) is import_module("sdxl_optim.cli").main


def test_an_archive_has_all_that_a_webui_runs_and_nothing_that_the_project_alone_needs():
    lines = (ROOT / ".gitattributes").read_text("utf-8").splitlines()
    left_out = [line.split()[0].strip("/") for line in lines if line.endswith(" export-ignore")]
    assert {"demo_model", "tests", "benchmarks"} <= set(left_out)
    assert not set(left_out) & set(FOR_THE_WEBUI)
    assert all((ROOT / name).exists() for name in (*left_out, *FOR_THE_WEBUI))
