"""The stock call: nothing is prepared, and the UNet is not touched."""

from __future__ import annotations

from sdxl_optim.backends.api import Backend
from sdxl_optim.backends.environment import Environment
from sdxl_optim.wording import Text


class Eager(Backend):
    name = "eager"
    captures = False

    def probe(self, environment: Environment) -> Text | None:
        return None

    def prepare(self, body, inputs, progress):
        return body

    def release(self) -> None:
        pass
