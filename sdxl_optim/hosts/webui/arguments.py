"""The script's arguments: which there are, and the settings that they say."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sdxl_optim import settings as declared
from sdxl_optim.settings import Field, Settings
from sdxl_optim.settings.preset_library import PresetLibrary
from sdxl_optim.settings.presets import NONE

PRESET = ("preset",)


def ui_fields() -> list[Field]:
    """Those with a component on the page, in the order of the script's arguments."""
    return [f for f in declared.fields() if f.declaration.in_ui]


def names(presets: PresetLibrary) -> list[str]:
    """The choices of the page's row of presets."""
    return [NONE, *presets.names]


def shown(field: Field, value: Any) -> Any:
    """A setting's value as its component holds it."""
    return NONE if value is None and field.declaration.nullable else value


def settings_of(args: tuple, presets: PresetLibrary) -> Settings:
    """The settings of a request: the API's dict as the first argument, or the components' values. Raises
    SettingsError."""
    if args and isinstance(args[0], dict):
        return declared.from_dict(args[0])
    return settings_held(args, presets)


def settings_held(values: Iterable[Any], presets: PresetLibrary) -> Settings:
    """What the accordion's components hold. A preset that another page has deleted is none: what it filled is there
    all the same. Raises SettingsError."""
    flat = {f.path: value for f, value in zip(ui_fields(), values, strict=False)}
    if flat.get(PRESET) not in names(presets):
        flat[PRESET] = None
    return declared.from_flat(flat)
