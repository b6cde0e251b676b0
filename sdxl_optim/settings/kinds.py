"""Kinds of setting. A field's declaration is the only place that knows its default, range, label, help and infotext
key."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sdxl_optim.errors import SettingsError
from sdxl_optim.settings.presets import NONE
from sdxl_optim.wording import Text, joined, message

_NOTHING = object()


@dataclass(frozen=True)
class Word:
    """A word of a combination such as "freeu+cutoff 0.75": it sets its setting to `value`, and a number behind it sets
    the one of the name `number` in the same group."""

    value: Any
    number: str | None = None


@dataclass(frozen=True)
class Declaration:
    """What is known of one setting. `kind` is toggle, slider or choice.

    off: the value that asks for nothing; without it, every value asks for something. words: those of combinations.
    """

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
    off: Any = _NOTHING
    words: Mapping[str, Word] = field(default_factory=dict, hash=False)

    def asks_for_something(self, value: Any) -> bool:
        return self.off is _NOTHING or value != self.off

    @property
    def allowed(self) -> Text:
        text: Text
        if self.kind == "toggle":
            text = "true or false"
        elif self.kind == "choice":
            text = joined(map(str, self.choices), by=", ")
        else:
            numbers = "an integer from {lo:g} to {hi:g}" if self.integer else "a number from {lo:g} to {hi:g}"
            text = message(numbers, lo=self.lo, hi=self.hi)
        return joined([text, "or null"], by=", ") if self.nullable else text

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
    return _setting(Declaration("toggle", default, label, help, off=False, **more))


def slider(default, lo, hi, step, label: str, help: str, **more):
    return _setting(Declaration("slider", default, label, help, lo, hi, step, **more))


def choice(default, choices: Sequence, label: str, help: str, **more):
    return _setting(Declaration("choice", default, label, help, choices=choices, **more))


def group(cls: type, label: str):
    return field(default=cls(), metadata={"label": label})
