"""Options that are made from declarations, so that argparse converts and checks their values; options that several
commands share."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sdxl_optim.errors import SettingsError
from sdxl_optim.hosts.standalone.samplers import DTYPES
from sdxl_optim.settings import Declaration

TAESDXL = "madebyollin/taesdxl"
Declarations = dict[str, Declaration]  # by the option's name without its dashes


# --- declarations


def number(default, lo, hi, step, help: str) -> Declaration:
    """A number from `lo` to `hi`; an integer if `step` is one. It may be null if `default` is."""
    return Declaration("slider", default, "", help, lo, hi, step, nullable=default is None)


def choice(default, choices: Iterable[str], help: str) -> Declaration:
    """One of `choices`."""
    return Declaration("choice", default, "", help, choices=tuple(choices))


@dataclass(frozen=True)
class Pixels(Declaration):
    """A size of a picture: a multiple of 8 as well."""

    def check(self, name: str, value: Any) -> Any:
        """Return `value` as an integer or None. Raises SettingsError."""
        value = super().check(name, value)
        if value is not None and value % 8:
            raise SettingsError(name, value, "a multiple of 8")
        return value


def pixels(help: str) -> Declaration:
    """A size of a picture, or null for the model's own."""
    return Pixels("slider", None, "", help, 64, 4096, 1, nullable=True)


SAMPLING = {
    "steps": number(50, 1, 150, 1, "Sampling steps."),
    "cfg": number(5.0, 0.0, 50.0, 0.1, "CFG scale: how closely the prompt is followed."),
    "width": pixels("Pixels, a multiple of 8. Without it the model's own size."),
    "height": pixels("Pixels, a multiple of 8. Without it the model's own size."),
    "device": choice("auto", ("auto", "cpu", "cuda", "mps"), "Where to compute."),
    "dtype": choice("auto", DTYPES, "Precision. auto is fp16 on a GPU and fp32 on the CPU."),
}


def sampling(steps: int) -> Declarations:
    """`SAMPLING` with another default for the number of steps."""
    return SAMPLING | {"steps": replace(SAMPLING["steps"], default=steps)}


# --- in argparse


class Declared(argparse.Action):
    """Stores the value that the declaration reads from the option's text.

    An action raises SettingsError through argparse; as a `type`, argparse would catch it and word its own sentence.
    """

    def __init__(self, option_strings, dest, declaration: Declaration, name: str, **options):
        super().__init__(option_strings, dest, metavar="VALUE", help=_help(declaration), **options)
        self.declaration, self.name = declaration, name

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        setattr(namespace, self.dest, self.declaration.read(self.name, values))


def add(parser: argparse.ArgumentParser, declarations: Declarations, only_given: bool = False) -> None:
    """Add an option for each declaration. only_given: what is not given is absent from the result, whatever its
    default."""
    for name, declaration in declarations.items():
        default = argparse.SUPPRESS if only_given else declaration.default
        add_declared(parser, [f"--{name}"], declaration, default=default)


def add_declared(parser, names: list[str], declaration: Declaration, **options) -> None:
    """Add one option; errors name it by the first of its names."""
    parser.add_argument(*names, action=Declared, declaration=declaration, name=names[0], **options)


def values_of(args: argparse.Namespace, declarations: Declarations) -> dict[str, Any]:
    """{python name: value} of the declared options, without those that are absent."""
    names = (name.replace("-", "_") for name in declarations)
    return {name: getattr(args, name) for name in names if hasattr(args, name)}


def add_tiny_vae(parser: argparse.ArgumentParser, help: str) -> None:
    """Add --tiny-vae."""
    parser.add_argument("--tiny-vae", default=TAESDXL, metavar="MODEL", help=help)


def add_out(parser: argparse.ArgumentParser, default: str, help: str) -> None:
    """Add --out."""
    parser.add_argument("--out", type=Path, default=Path(default), metavar="FOLDER", help=help)


def check_folder(path: Path) -> Path:
    """Check that the folder of --out can be written to, before any work is done for it. Raises SettingsError."""
    there = next((p for p in (path, *path.absolute().parents) if p.exists()), None)
    if there is None or not there.is_dir() or not os.access(there, os.W_OK):
        raise SettingsError("--out", str(path), "a folder that can be written to, which is made if there is none")
    return path


def _help(declaration: Declaration) -> str:
    allowed = str(declaration.allowed).removesuffix(", or null")
    default = "" if declaration.default is None else f"; default {str(declaration.default).lower()}"
    return f"{declaration.help} ({allowed}{default})".replace("%", "%%")
