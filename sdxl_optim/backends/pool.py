"""The executions that a host keeps between requests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from threading import Lock

from sdxl_optim import backends
from sdxl_optim.backends.api import NO_HOOKS, Backend, HostHooks
from sdxl_optim.backends.execution import Execution


class ExecutionPool:
    """At most one execution a backend, made when it is first asked for. A live plan asks for it from its own thread.

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
        self._lock = Lock()

    def get(self, name: str) -> Execution | None:
        """The named backend's execution; None for "eager", which is the stock call."""
        if name == "eager":
            return None
        with self._lock:
            if name not in self._executions:
                self._executions[name] = Execution(self._create(name, self._cache), self._host)
            return self._executions[name]

    def release_others(self, name: str) -> None:
        """Free what every backend but the named one keeps on the device."""
        with self._lock:
            kept = list(self._executions.items())
        for other, execution in kept:
            if other != name:
                execution.release()

    def release_all(self) -> None:
        self.release_others("eager")
