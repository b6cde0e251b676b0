"""The user's presets in a JSON file: {"presets": {name: {"about", "settings", "steps", "switch_at"}}}.

What can't be read is never overwritten: the file is copied aside first, and said so.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from sdxl_optim import settings as declared
from sdxl_optim.errors import SettingsError
from sdxl_optim.files import write_atomically
from sdxl_optim.settings import presets
from sdxl_optim.settings.presets import KnownPresets, Preset

STEPS = declared.Declaration("slider", None, "steps", "", 1, 150, 1, nullable=True)
ENCODING = "utf-8-sig"  # some editors put a mark in front
SWITCH_AT = declared.Declaration("slider", None, "switch at", "", 0.01, 1.0, 0.01, nullable=True)


class PresetLibrary:
    """All presets, of which the user's are kept in a file. Every change is written at once; each method that fails
    raises SettingsError and has changed nothing."""

    def __init__(self, path: Path, known: KnownPresets = presets.known):
        self.path = path
        self._known = known
        self.message: str | None = None  # of the last loading, for the user

    @property
    def names(self) -> list[str]:
        return list(self._known)

    @property
    def own(self) -> tuple[Preset, ...]:
        return self._known.own

    def find(self, name: str | None) -> Preset | None:
        return self._known.find(name)

    # --- from the file

    def load(self) -> str | None:
        """Read the file. The answer is one sentence for the user where something in it could not be read."""
        self._known.own, self.message = self._read()
        return self.message

    def _read(self) -> tuple[tuple[Preset, ...], str | None]:
        try:
            text = self.path.read_text(ENCODING)
        except FileNotFoundError:
            return (), None
        except (OSError, UnicodeDecodeError) as error:
            return (), self._set_aside(f"{self.path.name} can't be read ({type(error).__name__})")
        try:
            found, wrong = read(text)
        except SettingsError as error:
            return (), self._set_aside(str(error))
        return tuple(found), self._set_aside("; ".join(wrong)) if wrong else None

    def _set_aside(self, reason: str) -> str:
        stem, suffix = self.path.stem, self.path.suffix
        aside = self.path.with_name(f"{stem}.broken-{time.strftime('%Y%m%d-%H%M%S')}{suffix}")
        try:
            content = self.path.read_bytes()
            kept = (p for p in self.path.parent.glob(f"{stem}.broken-*{suffix}") if p.read_bytes() == content)
            aside = next(kept, aside)  # it was there at the last start, too
            aside.write_bytes(content)
        except OSError as error:
            return f"{reason}. {self.path} could not be copied aside ({type(error).__name__})."
        return f"{reason}. The file is kept as {aside.name}; all that could be read is there."

    # --- changes

    def save(self, preset: Preset) -> None:
        """Add it, or replace the one of its name."""
        _check_name(preset.name)
        self._write([*(p for p in self.own if p.name != preset.name), preset])

    def rename(self, old: str, new: str) -> None:
        _check_name(new)
        chosen = self._find_own(old)
        if new != old and new in self._known:
            raise SettingsError("preset", new, "a name that no other preset has")
        renamed = Preset(new, chosen.about, chosen.settings, chosen.steps, chosen.switch_at)
        self._write([renamed if p.name == old else p for p in self.own])

    def delete(self, name: str) -> None:
        self._find_own(name)
        self._write([p for p in self.own if p.name != name])

    def bring_in(self, text: str) -> list[str]:
        """Add the presets of an exported file, and return their names; one whose name is taken gets a number."""
        found, wrong = read(text)
        if wrong:
            raise SettingsError("preset", wrong[0], "presets that are all right")
        kept, names = list(self.own), []
        for p in found:
            name = _free_name(p.name, {q.name for q in kept})
            kept.append(Preset(name, p.about, p.settings, p.steps, p.switch_at))
            names.append(name)
        self._write(kept)
        return names

    def _find_own(self, name: str) -> Preset:
        chosen = next((p for p in self.own if p.name == name), None)
        if chosen is None:
            names = ", ".join(p.name for p in self.own) or "none yet"
            raise SettingsError("preset", name, f"one of your own: {names}")
        return chosen

    def _write(self, kept: list[Preset]) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self.path, as_text(kept))
        except OSError as error:
            raise SettingsError("presets file", str(self.path), f"a file that can be written ({error})") from None
        self._known.own = tuple(kept)


def as_text(chosen: list[Preset]) -> str:
    """What `read` reads back."""
    entries = {
        p.name: {"about": p.about, "settings": p.settings, "steps": p.steps, "switch_at": p.switch_at} for p in chosen
    }
    return json.dumps({"presets": entries}, indent=2, ensure_ascii=False) + "\n"


def read(text: str) -> tuple[list[Preset], list[str]]:
    """The presets in `text`, and a sentence for each that is wrong. Raises SettingsError where it is no such file."""
    try:
        entries = json.loads(text)["presets"]
        items = list(entries.items())
    except (ValueError, KeyError, TypeError, AttributeError):
        raise SettingsError("presets file", text[:40], 'a JSON object with "presets"') from None
    found, wrong = [], []
    for name, entry in items:
        try:
            found.append(_preset(name, entry))
        except SettingsError as error:
            wrong.append(f"preset {name}: {error}")
    return found, wrong


def _preset(name: str, entry: Any) -> Preset:
    _check_name(name)
    if not isinstance(entry, dict):
        raise SettingsError("preset", entry, "an object with settings, steps, switch_at, about")
    given = entry.get("settings", {})
    if isinstance(given, dict) and "preset" in given:
        raise SettingsError("settings.preset", given["preset"], "no preset inside a preset")
    declared.from_dict(given)  # raises where a value is wrong
    steps = STEPS.check("steps", entry.get("steps"))
    return Preset(name, str(entry.get("about", "")), given, steps, SWITCH_AT.check("switch_at", entry.get("switch_at")))


def _check_name(name: str) -> None:
    allowed = presets.why_no_name(name)
    if allowed:
        raise SettingsError("preset name", name, allowed)


def _free_name(name: str, taken: set[str]) -> str:
    numbered = (f"{name[: presets.MAX_NAME - 4]} {i}" for i in range(2, 1000))
    return name if name not in taken else next(n for n in numbered if n not in taken)
