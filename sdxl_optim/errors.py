"""The two errors of this package. Everything else is a bug and propagates."""


class SettingsError(ValueError):
    """A setting that cannot be used: names the field, the value given and what is allowed."""

    def __init__(self, field: str, value: object, allowed: str):
        self.field, self.value, self.allowed = field, value, allowed
        super().__init__(f"{field}: {value!r} is not allowed; allowed: {allowed}")


class Unsupported(Exception):
    """A technique that cannot run here: names the technique and the reason."""

    def __init__(self, feature: str, reason: str):
        self.feature, self.reason = feature, reason
        super().__init__(f"{feature}: {reason}")
