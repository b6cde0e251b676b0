"""The errors that reach a user as one sentence."""

from __future__ import annotations

from sdxl_optim.wording import Text


class SettingsError(ValueError):
    """A setting that cannot be used: names the field, the value given and what is allowed."""

    def __init__(self, field: str, value: object, allowed: Text):
        self.field, self.value, self.allowed = field, value, str(allowed)
        super().__init__(f"{field}: {value!r} is not allowed; allowed: {allowed}")


class Refused(RuntimeError):
    """What a library refuses before the first step is done, in its own words."""


class Failed(RuntimeError):
    """A request that came to nothing while it ran, and why."""


class Unsupported(Exception):
    """A technique that cannot run here: names the technique and the reason."""

    def __init__(self, feature: str, reason: Text):
        self.feature, self.reason = feature, reason
        super().__init__(f"{feature}: {reason}")
