"""For all tests: what they share (`ldm_unet`, `host_loop`) is imported by its name."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
# The tests' tensors are tiny: more threads only wait for each other, on a busy machine many times over.
torch.set_num_threads(1)
