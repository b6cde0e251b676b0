"""Single values laid over settings: an X/Y/Z axis, a named combination. A value switches its technique on; `off`,
off."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sdxl_optim import settings as declared
from sdxl_optim.errors import SettingsError
from sdxl_optim.settings import Field, FieldPath, Settings

OFF = "off"
PRESET: FieldPath = ("preset",)

# The words of a combination such as "freeu+cutoff 0.75+deepcache 3": what a word sets, the field that its number
# sets, and the value that the word stands for.
COMBINATION: dict[str, tuple[FieldPath, FieldPath | None, object]] = {
    "freeu": (("freeu", "enabled"), ("freeu", "b1"), True),
    "cutoff": (("cfg_cutoff", "enabled"), ("cfg_cutoff", "stop"), True),
    "deepcache": (("deepcache", "enabled"), ("deepcache", "cache_interval"), True),
    "branch": (("deepcache", "enabled"), ("deepcache", "cache_branch_id"), True),
    "tiny": (("vae", "decoder"), None, "tiny"),
    "tiling": (("vae", "tiling"), ("vae", "tile_size"), True),
    "staged": (("memory", "offload"), ("memory", "budget"), "staged"),
    "model": (("memory", "offload"), None, "model"),
    "sequential": (("memory", "offload"), None, "sequential"),
    "fp8": (("memory", "weights"), None, "fp8"),
    "cudagraph": (("backend", "name"), None, "cudagraph"),
    "inductor": (("backend", "name"), None, "inductor"),
    "onediff": (("backend", "name"), None, "onediff"),
    "stable-fast": (("backend", "name"), None, "stable-fast"),
    "tensorrt": (("backend", "name"), None, "tensorrt"),
    "sdpa": (("backend", "attention"), None, "sdpa"),
}


def read_value(field: Field, text: str) -> dict[FieldPath, object]:
    """The changes that one axis value means. Raises SettingsError."""
    if field.path == PRESET and text.strip().lower() == OFF:
        return {PRESET: OFF}
    technique = switch_of(field)
    if technique is not None and text.strip().lower() == OFF:
        return {technique: False}
    try:
        value = field.declaration.read(field.name, text)
    except SettingsError as error:
        allowed = error.allowed + (f", or {OFF}" if technique or field.path == PRESET else "")
        raise SettingsError(field.title, text, allowed) from None
    own = {("hires", "mode"): "own"} if field.path[0] == "hires" and technique else {}
    return own | ({} if technique is None else {technique: True}) | {field.path: value}


def switch_of(field: Field) -> FieldPath | None:
    """The `enabled` of the technique that this setting belongs to, or None."""
    switch = (*field.path[:-1], "enabled")
    return switch if len(field.path) > 1 and any(f.path == switch for f in declared.fields()) else None


def read_combination(text: str) -> dict[FieldPath, object]:
    """The changes that a combination means, "stock" or "off" being none of all. Raises SettingsError."""
    allowed = "stock, or names joined by +, each with its number or none: " + ", ".join(COMBINATION)
    by_path = {f.path: f for f in declared.fields()}
    changes: dict[FieldPath, object] = {path: by_path[path].declaration.default for path, _, _ in COMBINATION.values()}
    if text.strip().lower() in ("stock", OFF):
        return changes
    for part in text.split("+"):
        name, _, number = part.strip().partition(" ")
        if name not in COMBINATION or (number and COMBINATION[name][1] is None):
            raise SettingsError("combination", text, allowed)
        path, parameter, value = COMBINATION[name]
        changes[path] = value
        if number and parameter is not None:
            changes[parameter] = by_path[parameter].declaration.read(by_path[parameter].name, number)
    return changes


def apply(settings: Settings, changes: Mapping[FieldPath, Any]) -> Settings:
    """Settings with `changes` laid over. Where the extension is off, it starts from the defaults, not from what the
    folded accordion holds; and if the changes switch nothing on, it stays off.

    A preset among them replaces all that the settings held, whichever axis it is on; the other changes go over it.
    """
    base = settings if settings.enabled else Settings()
    if changes.get(PRESET) is not None:
        base = Settings()
        name = None if changes[PRESET] == OFF else changes[PRESET]
        changes = {**declared.preset_values(name), **changes, PRESET: name}
    switches_on = any(value not in (False, "host", "eager", None) for value in changes.values())
    values = {**declared.flatten(base), **changes, ("enabled",): settings.enabled or switches_on}
    return declared.from_flat(values)


def runs_nothing(settings: Settings) -> bool:
    """Whether these settings make the stock picture: off, or on with no technique on."""
    if not settings.enabled:
        return True
    for field in declared.changed(settings):
        switch = switch_of(field)
        if field.path not in (("enabled",), PRESET) and (switch is None or declared.get(settings, switch)):
            return False
    return True
