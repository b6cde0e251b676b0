"""What this machine and its packages can do. The backends decide by it whether they can run."""

from __future__ import annotations

import importlib.util
import platform
import re
import shutil
import sys
from dataclasses import dataclass

import torch

from sdxl_optim.wording import Text

PACKAGES = ("triton", "onediff", "oneflow", "nexfort", "sfast", "torch_tensorrt")
COMPILERS = ("g++", "clang++", "cl", "c++")


@dataclass(frozen=True)
class Environment:
    """torch: its version as numbers. compiler: a C++ compiler's name, or None. memory: the device's, in bytes.

    host_reason: why the host's own state allows only its stock call, or None.
    """

    torch: tuple[int, ...]
    cuda: bool = False
    rocm: bool = False
    device: str = "CPU"
    capability: tuple[int, int] | None = None
    memory: int = 0
    system: str = "Linux"
    python: tuple[int, ...] = (3, 10)
    packages: frozenset[str] = frozenset()
    compiler: str | None = None
    host_reason: Text | None = None


def read_environment(host_reason: Text | None = None) -> Environment:
    cuda = torch.cuda.is_available()
    properties = torch.cuda.get_device_properties(torch.cuda.current_device()) if cuda else None
    return Environment(
        torch=version_numbers(torch.__version__),
        cuda=cuda,
        rocm=torch.version.hip is not None,
        device=properties.name if properties else (platform.processor() or "CPU"),
        capability=(properties.major, properties.minor) if properties else None,
        memory=properties.total_memory if properties else 0,
        system=platform.system(),
        python=sys.version_info[:2],
        packages=frozenset(name for name in PACKAGES if _installed(name)),
        compiler=next((name for name in COMPILERS if shutil.which(name)), None),
        host_reason=host_reason,
    )


def version_numbers(text: str) -> tuple[int, ...]:
    """(2, 11, 0) of "2.11.0+cu130"."""
    return tuple(map(int, re.findall(r"\d+", text.split("+")[0])[:3]))


def _installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):  # a package that is not wholly installed
        return False
