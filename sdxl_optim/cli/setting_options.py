"""An option for each setting, and Settings from the options given."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from sdxl_optim import settings
from sdxl_optim.cli import options
from sdxl_optim.errors import SettingsError
from sdxl_optim.settings import Field, FieldPath, Settings

SHORT = {"memory.offload": "offload", "memory.weights": "weights"}


def add(parser: argparse.ArgumentParser) -> None:
    """Add --settings, and a group of options for each group of settings."""
    text = "The same as a JSON object, or a file with one; the options below go before it."
    parser.add_argument("--settings", metavar="JSON", help=text)
    groups: dict[str, Any] = {}  # argparse's, by title
    for field in _fields():
        title = ".".join(field.path[:-1]) or "settings"
        if title not in groups:
            groups[title] = parser.add_argument_group(title, _about_group(field))
        names = [f"--{field.name}"]
        if field.path[-1] == "enabled":  # --freeu is short for --freeu.enabled
            names.append(f"--{title}")
        if field.name in SHORT:
            names.append(f"--{SHORT[field.name]}")
        more: dict[str, Any] = {"nargs": "?", "const": "true"} if field.declaration.kind == "toggle" else {}
        more |= {"dest": field.name, "default": argparse.SUPPRESS}
        options.add_declared(groups[title], names, field.declaration, **more)


def read(args: argparse.Namespace) -> Settings:
    """`--settings`, then the single options over it. Raises SettingsError."""
    flat: dict[FieldPath, Any] = {("enabled",): True}
    if args.settings:
        flat |= settings.read_dict(_read_json(args.settings))
    given = {f.path: getattr(args, f.name) for f in _fields() if hasattr(args, f.name)}
    if any(path[0] == "hires" and len(path) > 2 for path in given):
        flat["hires", "mode"] = "own"
    result = settings.from_given(flat | given)
    return result if result.enabled else Settings()


def _fields() -> list[Field]:
    """The settings that leave a choice here. Switching everything on and the steps have options of their own."""
    own = {("enabled",), ("steps",)}
    return [f for f in settings.fields() if f.path not in own and not _is_fixed(f)]


def _is_fixed(field: Field) -> bool:
    return field.declaration.kind == "choice" and len(field.declaration.choices) < 2


def _about_group(field: Field) -> str:
    if field.path[0] == "hires":
        return "For the second pass, here the refiner's with --refiner-strength."
    return " ".join(field.labels[:-1])


def _read_json(text: str) -> object:
    try:
        return json.loads(text if text.lstrip().startswith("{") else Path(text).read_text("utf-8-sig"))
    except (OSError, ValueError) as error:
        raise SettingsError("--settings", text, f"a JSON object, or the path of a file with one ({error})") from None
