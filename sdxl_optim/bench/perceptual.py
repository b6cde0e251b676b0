"""LPIPS (arXiv:1801.03924) with AlexNet. It takes a package and weights that neither the WebUI nor diffusers brings."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path

from sdxl_optim.wording import Text, message

PACKAGE = "lpips"
WEIGHTS = "alexnet-owt-7be5be79.pth"  # torchvision's name, at its place on download.pytorch.org
WEIGHTS_URL = f"https://download.pytorch.org/models/{WEIGHTS}"
WEIGHTS_SIZE = "233 MB"


def lpips(reference, picture) -> float | None:
    """Perceptual distance of two 8-bit pictures [H, W, 3] of one size; None where the package or its weights are
    not at hand. 0 is equal."""
    if missing():
        return None
    import numpy as np
    import torch

    pictures = (torch.from_numpy(np.asarray(p, dtype=np.float32)) for p in (reference, picture))
    with torch.no_grad():
        return float(_network()(*(p.permute(2, 0, 1)[None] / 127.5 - 1 for p in pictures)))


def missing() -> Text:
    """Why there is no LPIPS, in a sentence; empty where there is."""
    if not has_package():
        return "LPIPS is missing: it takes the package lpips (pip install lpips) and AlexNet's weights."
    if not weights_file().is_file():
        text = "LPIPS is missing: AlexNet's weights ({file}, {size}) are not in torch's checkpoints folder."
        return message(text, file=WEIGHTS, size=WEIGHTS_SIZE)
    return ""


def has_package() -> bool:
    return importlib.util.find_spec(PACKAGE) is not None


def weights_file() -> Path:
    """Where torchvision looks for AlexNet's weights before it fetches them."""
    import torch

    return Path(torch.hub.get_dir(), "checkpoints", WEIGHTS)


@functools.cache
def _network():
    import lpips as package

    return package.LPIPS(net="alex", verbose=False).eval()
