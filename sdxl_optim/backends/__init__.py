"""How a UNet call is executed: one file a backend, and this table of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from sdxl_optim.backends.api import Backend
from sdxl_optim.backends.cudagraph import CudaGraph
from sdxl_optim.backends.eager import Eager
from sdxl_optim.backends.environment import Environment
from sdxl_optim.backends.inductor import Inductor
from sdxl_optim.backends.vendors.onediff import OneDiff
from sdxl_optim.backends.vendors.stable_fast import StableFast
from sdxl_optim.backends.vendors.tensorrt import TensorRT
from sdxl_optim.wording import Text

# By the settings' names. Each takes the folder for compiled code.
BACKENDS: dict[str, Callable[[Path | None], Backend]] = {
    "eager": lambda cache: Eager(),
    "cudagraph": lambda cache: CudaGraph(),
    "inductor": Inductor,
    "onediff": OneDiff,
    "stable-fast": StableFast,
    "tensorrt": TensorRT,
}


def create(name: str, cache: Path | None = None) -> Backend:
    return BACKENDS[name](cache)


def why_not(name: str, environment: Environment) -> Text | None:
    """Why the named backend can't run in this environment, or None."""
    if name != "eager" and environment.host_reason:
        return environment.host_reason
    return create(name).probe(environment)


def probe_all(environment: Environment) -> dict[str, Text | None]:
    return {name: why_not(name, environment) for name in BACKENDS}
