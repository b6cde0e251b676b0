"""Settings to infotext and back. What is written differs from the default; what is missing is the default again."""

from __future__ import annotations

from typing import Any

from sdxl_optim import settings as declared
from sdxl_optim.errors import SettingsError
from sdxl_optim.settings import INFOTEXT_PREFIX, Field, Settings
from sdxl_optim.settings.presets import NONE

RESULT = f"{INFOTEXT_PREFIX} result"
REFUSED = f"{INFOTEXT_PREFIX} notes"


def write(settings: Settings) -> dict[str, str]:
    """The infotext entries of enabled settings."""
    return {f.infotext_key: str(value) for f, value in declared.changed(settings).items() if f.declaration.in_ui}


def read(params: dict[str, Any]) -> Settings:
    """The settings in parsed infotext. Values that this version does not know become the default."""
    values = {}
    for f in declared.fields():
        text = params.get(f.infotext_key)
        if text is not None and f.declaration.in_ui:
            try:
                values[f.path] = f.declaration.read(f.name, text)
            except SettingsError:
                continue
    return declared.from_flat(values)


def is_ours(params: dict[str, Any]) -> bool:
    return INFOTEXT_PREFIX in params


class FieldReader(str):
    """What the host calls to fill one component from parsed infotext; None leaves the component as it is.

    A picture made with the extension sets every component; one made without switches it off; a bare prompt changes
    nothing. It reads as the infotext key: by that the host finds the same setting in the other tab, for the gallery's
    "Send to img2img".
    """

    field: Field

    def __new__(cls, field: Field) -> FieldReader:
        reader = super().__new__(cls, field.infotext_key)
        reader.field = field
        return reader

    def __call__(self, params: dict[str, Any]) -> Any:
        if is_ours(params):
            value = declared.get(read(params), self.field.path)
            return NONE if value is None and self.field.declaration.nullable else value
        if self.field.path == ("enabled",) and "Steps" in params:
            return False
        return None


def on_infotext_pasted(infotext: str, params: dict[str, Any]) -> None:
    """Take the host's own "VAE Decoder" where our setting brings it about, so that no override chip is left for it."""
    if is_ours(params) and read(params).vae.decoder != "host":
        params.pop("VAE Decoder", None)
