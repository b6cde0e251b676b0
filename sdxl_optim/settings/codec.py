"""Settings from dicts and flat values, and back. Everything that comes in is checked."""

from __future__ import annotations

import dataclasses
from typing import Any

from sdxl_optim.errors import SettingsError
from sdxl_optim.settings import presets
from sdxl_optim.settings.schema import Field, FieldPath, Hires, Settings, fields, get


def flatten(settings: Settings) -> dict[FieldPath, Any]:
    return {f.path: get(settings, f.path) for f in fields()}


def from_flat(values: dict[FieldPath, Any]) -> Settings:
    """Settings from {path: value}; what is missing keeps its default. Raises SettingsError."""
    checked = {f.path: f.declaration.check(f.name, values[f.path]) for f in fields() if f.path in values}
    return _build(Settings, (), checked)


def _build(cls: type, path: FieldPath, values: dict[FieldPath, Any]):
    parts = {}
    for f in dataclasses.fields(cls):
        here = (*path, f.name)
        if "declaration" not in f.metadata:
            parts[f.name] = _build(type(f.default), here, values)
        elif here in values:
            parts[f.name] = values[here]
    return cls(**parts)


def from_dict(given: Any) -> Settings:
    """Settings from the API's dict, of which any subset may be given; `enabled` defaults to true there, and what is not
    given comes from the preset, if one is.

    Raises SettingsError for an unknown key, a wrong type or a value out of range.
    """
    return from_given({("enabled",): True, **read_dict(given)})


def read_dict(given: Any) -> dict[FieldPath, Any]:
    """{path: value} of what the API's dict holds, unchecked. Raises SettingsError for an unknown key."""
    if not isinstance(given, dict):
        raise SettingsError("settings", given, "an object with any of: " + _names(Settings))
    return _read_dict(Settings, (), given)


def from_given(values: dict[FieldPath, Any]) -> Settings:
    """Settings from what the user set and, for the rest, what the preset that is named among it has. Raises
    SettingsError."""
    return from_flat({**preset_values(values.get(("preset",))), **values})


def preset_values(name: str | None) -> dict[FieldPath, Any]:
    """{path: value} of what the preset sets; nothing where there is none of that name."""
    preset = presets.known.find(name) if isinstance(name, str) else None
    return read_dict(preset.settings) if preset else {}


def _names(cls: type) -> str:
    return ", ".join(f.name for f in dataclasses.fields(cls))


def _read_dict(cls: type, path: FieldPath, given: dict) -> dict[FieldPath, Any]:
    known = {f.name: f for f in dataclasses.fields(cls)}
    values: dict[FieldPath, Any] = {}
    for key, value in given.items():
        here = (*path, str(key))
        if key not in known:
            raise SettingsError(".".join(here), value, f"{'.'.join(path) or 'settings'} has {_names(cls)}")
        if "declaration" in known[key].metadata:
            values[here] = value
            continue
        inner = type(known[key].default)
        if inner is Hires:
            values.update(_read_hires(here, value))
        elif isinstance(value, dict):
            values.update(_read_dict(inner, here, value))
        else:
            raise SettingsError(".".join(here), value, f"an object with any of: {_names(inner)}")
    return values


def _read_hires(path: FieldPath, value: Any) -> dict[FieldPath, Any]:
    if isinstance(value, str) and value in ("same", "off"):
        return {(*path, "mode"): value}
    if isinstance(value, dict):
        return {(*path, "mode"): "own", **_read_dict(Hires, path, value)}
    raise SettingsError(".".join(path), value, "same, off, or an object with any of: freeu, cfg_cutoff, deepcache")


def to_dict(settings: Settings) -> dict:
    """The API's dict of these settings; `from_dict` reads it back to the same settings."""
    result = dataclasses.asdict(settings)
    if settings.hires in (Hires(mode="same"), Hires(mode="off")):
        result["hires"] = settings.hires.mode
    return result


def to_sparse_dict(settings: Settings) -> dict:
    """The API's dict of what differs from the defaults."""
    result: dict = {}
    for field_, value in changed(settings).items():
        inner = result
        for part in field_.path[:-1]:
            inner = inner.setdefault(part, {})
        inner[field_.path[-1]] = value
    if "hires" in result and settings.hires.mode != "own":
        result["hires"] = settings.hires.mode
    elif "hires" in result:
        del result["hires"]["mode"]
    return result


def changed(settings: Settings) -> dict[Field, Any]:
    """The settings that differ from their declared default."""
    return {f: value for f in fields() if (value := get(settings, f.path)) != f.declaration.default}
