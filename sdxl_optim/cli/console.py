"""What the commands print, and what they keep libraries from printing."""

from __future__ import annotations

import sys
import warnings

PROG = "sdxl_optim"


def say(*lines: str) -> None:
    """Print the lines to standard output."""
    sys.stdout.write("".join(f"{line}\n" for line in lines))


def quiet_libraries() -> None:
    """Let diffusers and transformers print errors alone: their warnings concern parts that are not used here."""
    import diffusers
    import transformers

    diffusers.utils.logging.set_verbosity_error()
    transformers.utils.logging.set_verbosity_error()
    warnings.filterwarnings("ignore", category=FutureWarning)
