"""Single values laid over settings: an X/Y/Z axis, a named combination. A value switches its technique on; `off`,
off."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from sdxl_optim import settings as declared
from sdxl_optim.errors import SettingsError
from sdxl_optim.settings import Field, FieldPath, Settings

OFF = "off"
PRESET: FieldPath = ("preset",)


@dataclass(frozen=True)
class CombinationWord:
    """A word of a combination such as "freeu+cutoff 0.75+deepcache 3": the setting that it sets, the value that it
    stands for, and the setting that a number behind it sets."""

    path: FieldPath
    value: object
    number: Field | None


@cache
def combination_words() -> dict[str, CombinationWord]:
    """By the words, as the settings declare them."""
    by_path = {f.path: f for f in declared.fields()}
    return {
        text: CombinationWord(f.path, word.value, by_path[(*f.path[:-1], word.number)] if word.number else None)
        for f in declared.fields()
        if f.path[0] != "hires"
        for text, word in f.declaration.words.items()
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
    words = combination_words()
    allowed = "stock, or names joined by +, each with its number or none: " + ", ".join(words)
    by_path = {f.path: f for f in declared.fields()}
    changes: dict[FieldPath, object] = {word.path: by_path[word.path].declaration.default for word in words.values()}
    if text.strip().lower() in ("stock", OFF):
        return changes
    for part in text.split("+"):
        name, _, number = part.strip().partition(" ")
        word = words.get(name)
        if word is None or (number and word.number is None):
            raise SettingsError("combination", text, allowed)
        changes[word.path] = word.value
        if number and word.number is not None:
            changes[word.number.path] = word.number.declaration.read(word.number.name, number)
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
    by_path = {f.path: f for f in declared.fields()}
    switches_on = any(by_path[path].declaration.asks_for_something(value) for path, value in changes.items())
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
