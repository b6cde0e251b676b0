"""A host fulfils its contract: it overrides what has no default, and adds nothing that only it could be asked."""

from __future__ import annotations

import ast

import pytest
from sources import Module, product

WEBUI = "sdxl_optim.hosts.webui"
CONTRACT = f"{WEBUI}.family"
HOSTS = {f"{WEBUI}.a1111": "A1111", f"{WEBUI}.forge.host": "Forge"}
PARTS = {f"{WEBUI}.placement": ("WeightsOnHost", "HostsWeights"), f"{WEBUI}.vae": ("VaePatch", "HostsVae")}


def methods(module: Module, name: str) -> dict[str, ast.FunctionDef]:
    """The public ones of a class."""
    found = next(node for node in module.tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    return {node.name: node for node in found.body if isinstance(node, ast.FunctionDef) and node.name[0] != "_"}


def is_open(method: ast.FunctionDef) -> bool:
    return any(isinstance(node, ast.Raise) and "NotImplementedError" in ast.unparse(node) for node in ast.walk(method))


def arguments(method: ast.FunctionDef) -> list[str]:
    return [argument.arg for argument in method.args.args]


def breaches(host: Module, name: str) -> list[str]:
    contract, own = methods(product().modules[CONTRACT], "HostFamily"), methods(host, name)
    missing = [f"{one} is missing" for one, method in contract.items() if is_open(method) and one not in own]
    added = [f"{one} is not in the contract" for one in own if one not in contract]
    others = [
        f"{one} takes other arguments"
        for one, method in own.items()
        if one in contract and arguments(method) != arguments(contract[one])
    ]
    return missing + added + others


@pytest.mark.parametrize(("module", "name"), HOSTS.items())
def test_each_host_fulfils_the_contract(module, name):
    assert breaches(product().modules[module], name) == []


@pytest.mark.parametrize(("module", "names"), PARTS.items())
def test_what_a_host_places_and_patches_has_all_that_is_called(module, names):
    own, default = names
    have, contract = methods(product().modules[module], own), methods(product().modules[CONTRACT], default)
    assert contract.keys() <= have.keys()
    for name, method in contract.items():
        assert arguments(have[name]) == arguments(method)


def test_the_check_can_fail():
    planted = Module("planted.py", "class Planted:\n    def loaded_model(self, now): ...\n    def more(self): ...\n")
    found = breaches(planted, "Planted")
    assert "gather_facts is missing" in found
    assert "more is not in the contract" in found
    assert "loaded_model takes other arguments" in found
    assert "hold_options is missing" not in found
