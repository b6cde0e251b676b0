"""`doctor`: what this machine can run, and why not."""

from __future__ import annotations

import argparse
import platform

from sdxl_optim.cli.console import say


def add_to(commands) -> None:
    """Add the command to the command line's subparsers."""
    parser = commands.add_parser("doctor", help="say what this machine can run, and why not", allow_abbrev=False)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print what `examine` finds; the exit code."""
    say(*examine())
    return 0


def examine() -> list[str]:
    """Lines for people about this machine: packages, device, and each backend with the reason why it can't run."""
    import torch

    from sdxl_optim import backends
    from sdxl_optim.backends.environment import read_environment
    from sdxl_optim.techniques.accumulation.patch import why_no_fp16_accumulation

    environment = read_environment()
    lines = [
        f"sdxl_optim on Python {platform.python_version()}, {environment.system}",
        f"torch {torch.__version__}" + (f", CUDA {torch.version.cuda}" if torch.version.cuda else ""),
        _device(environment),
        f"packages: {', '.join(sorted(environment.packages)) or 'none of those that backends need'}",
        f"C++ compiler: {environment.compiler or 'none on the path'}",
        "backends:",
    ]
    lines += [f"  {name}: {why or 'available'}" for name, why in backends.probe_all(environment).items()]
    return [*lines, f"fp16 accumulation: {why_no_fp16_accumulation() or 'available'}"]


def _device(environment) -> str:
    import torch

    if not environment.cuda:
        return f"device: {environment.device}, without CUDA"
    capability = "" if environment.rocm else f", capability {'.'.join(map(str, environment.capability))}"
    free, total = torch.cuda.mem_get_info()
    return f"device: {environment.device}{capability}, {free / 1e9:.1f} of {total / 1e9:.1f} GB free"
