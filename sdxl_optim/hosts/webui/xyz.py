"""An X/Y/Z axis for every setting, from its declaration. Values live on the request of the cell's own copy of `p`."""

from __future__ import annotations

from fastapi import HTTPException

from modules import scripts
from sdxl_optim import settings as declared
from sdxl_optim.errors import SettingsError
from sdxl_optim.hosts.webui import request
from sdxl_optim.settings import Field, Settings, overrides

PREFIX = "[SDXL Optim] "
COMPILES = 0.9  # the host varies costly axes least; a checkpoint's is 1.0


class WrongSettings(HTTPException):
    """HTTP 422 by the API; the same sentence in the UI's error box."""

    def __init__(self, error: SettingsError):
        super().__init__(status_code=422, detail=str(error))

    def __str__(self) -> str:
        return self.detail


def with_axes(settings: Settings, p) -> Settings:
    """The settings of this cell."""
    changes = request.attach(p).overrides
    return overrides.apply(settings, changes) if changes else settings


def add_axes() -> None:
    """Add ours to the host's list of axes; once, however often the UI is built."""
    module = next((d.module for d in scripts.scripts_data if d.script_class.__module__ == "xyz_grid.py"), None)
    if module is None:
        return
    module.axis_options[:] = [o for o in module.axis_options if not o.label.startswith(PREFIX)]
    for field in declared.fields():
        if field.declaration.in_ui and field.path != ("enabled",):
            cost = COMPILES if field.path[0] == "backend" else 0.0
            module.axis_options.append(_axis(module, field.title, _reader(field), _choices(field), cost))
    module.axis_options.append(_axis(module, "combination", overrides.read_combination, None))


def _reader(field: Field):
    return lambda text: overrides.read_value(field, text)


def _choices(field: Field):
    d = field.declaration
    if d.kind == "toggle":
        return lambda: ["on", "off"]
    if d.kind == "choice":
        off = [overrides.OFF] if overrides.switch_of(field) or field.path == overrides.PRESET else []
        return lambda: [*off, *map(str, d.choices)]
    return None


def _axis(module, name: str, read, choices, cost: float = 0.0):
    def apply(p, value, values) -> None:
        own = request.attach(p)
        own.overrides = {**own.overrides, **read(value)}

    def confirm(p, values) -> None:
        try:
            for value in values:
                read(value)
        except SettingsError as error:
            raise WrongSettings(error) from None

    def format_value(p, option, value) -> str:
        return f"{name}: {value}"

    more = {"format_value": format_value, "confirm": confirm, "choices": choices, "cost": cost}
    return module.AxisOption(PREFIX + name, str, apply, **more)
