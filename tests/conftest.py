"""For all tests: what they share (`ldm_unet`, `host_loop`) is imported by its name."""

import sys
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

with suppress(ImportError):  # those that drive a running WebUI need no torch
    import torch

    # The tests' tensors are tiny: more threads only wait for each other, on a busy machine many times over.
    torch.set_num_threads(1)

with suppress(ImportError):
    from hypothesis import settings

    settings.register_profile("no deadline", deadline=None)  # a busy machine is no failure
    settings.load_profile("no deadline")
