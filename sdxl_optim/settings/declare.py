"""Kinds of setting. A field's declaration is the only place that knows its default, range, label, help and infotext
key."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sdxl_optim.errors import SettingsError
from sdxl_optim.settings.presets import NONE


@dataclass(frozen=True)
class Declaration:
    """What is known of one setting. `kind` is toggle, slider or choice."""

    kind: str
    default: Any
    label: str
    help: str
    lo: Any = None  # and hi: the least and the greatest number of a slider
    hi: Any = None
    step: float | None = None
    choices: Sequence = ()
    nullable: bool = False
    in_ui: bool = True

    @property
    def allowed(self) -> str:
        if self.kind == "toggle":
            text = "true or false"
        elif self.kind == "choice":
            text = ", ".join(map(str, self.choices))
        else:
            text = f"{'an integer' if self.integer else 'a number'} from {self.lo:g} to {self.hi:g}"
        return f"{text}, or null" if self.nullable else text

    @property
    def integer(self) -> bool:
        return self.kind == "slider" and isinstance(self.step, int)

    def check(self, name: str, value: Any) -> Any:
        """Return `value` in the declared type. Raises SettingsError."""
        if self.nullable and (value is None or value == NONE):
            return None
        if self.kind == "toggle":
            ok = isinstance(value, bool)
        elif self.kind == "choice":
            ok = any(value == c and type(value) is type(c) for c in self.choices)
        else:
            ok = not isinstance(value, bool) and isinstance(value, (int, float)) and self.lo <= value <= self.hi
            ok = ok and (not self.integer or value == int(value))
        if not ok:
            raise SettingsError(name, value, self.allowed)
        return (int(value) if self.integer else float(value)) if self.kind == "slider" else value

    def read(self, name: str, text: str) -> Any:
        """The value written as `text` (infotext, command line, X/Y/Z cell). Raises SettingsError."""
        text = str(text).strip()
        try:
            if self.kind == "toggle":
                value: Any = {"true": True, "false": False, "on": True, "off": False}[text.lower()]
            elif self.nullable and text == NONE:
                value = None
            elif self.kind == "choice":
                value = next(c for c in self.choices if str(c) == text)
            else:
                value = float(text)
        except (KeyError, StopIteration, ValueError):
            raise SettingsError(name, text, self.allowed) from None
        return self.check(name, value)


def _setting(declaration: Declaration):
    return field(default=declaration.default, metadata={"declaration": declaration})


def toggle(default: bool, label: str, help: str, **more):
    return _setting(Declaration("toggle", default, label, help, **more))


def slider(default, lo, hi, step, label: str, help: str, **more):
    return _setting(Declaration("slider", default, label, help, lo, hi, step, **more))


def choice(default, choices: Sequence, label: str, help: str, **more):
    return _setting(Declaration("choice", default, label, help, choices=choices, **more))


def group(cls: type, label: str):
    return field(default=cls(), metadata={"label": label})
