"""The executions that a host keeps between requests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from sdxl_optim import backends
from sdxl_optim.backends.api import NO_HOOKS, Backend, HostHooks
from sdxl_optim.backends.execution import Execution


class ExecutionPool:
    """At most one execution a backend, made when it is first asked for.

    cache: folder for compiled code, or None. create: makes a backend of its name and that folder.
    """

    def __init__(
        self,
        host: HostHooks = NO_HOOKS,
        cache: Path | None = None,
        create: Callable[[str, Path | None], Backend] = backends.create,
    ):
        self._host, self._cache, self._create = host, cache, create
        self._executions: dict[str, Execution] = {}

    def get(self, name: str) -> Execution | None:
        """The named backend's execution; None for "eager", which is the stock call."""
        if name == "eager":
            return None
        if name not in self._executions:
            self._executions[name] = Execution(self._create(name, self._cache), self._host)
        return self._executions[name]

    def release_others(self, name: str) -> None:
        """Free what every backend but the named one keeps on the device."""
        for other, execution in self._executions.items():
            if other != name:
                execution.release()

    def release_all(self) -> None:
        self.release_others("eager")
