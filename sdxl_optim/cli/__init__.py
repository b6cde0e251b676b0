"""`python -m sdxl_optim`: the standalone command line over diffusers. One file a command."""

from sdxl_optim.cli.main import main

__all__ = ["main"]
