"""Puts the tests' backend that captures without CUDA in the place of `cudagraph`."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[3]))

from graphs import Tape

from sdxl_optim import backends

backends.BACKENDS["cudagraph"] = lambda cache: Tape()
