"""Where a NaN or an infinity came from: the text encoders, the UNet or the sampler."""

from __future__ import annotations

import torch

from sdxl_optim.errors import Failed

WEIGHTS = "the model's weights may be damaged, or the precision too small for them (--dtype bf16 or fp32)"
SCHEDULE = "another sampler may do, or another --prediction-type"


class FiniteWatch:
    """Sums of what a pass computes, which are finite if every number is. They stay on their device, as looking at one
    waits for it, until `check`."""

    def __init__(self):
        self._sums: list[torch.Tensor] = []
        self._about: list[tuple[str, str]] = []

    def see(self, name: str, tensor: torch.Tensor, advice: str = WEIGHTS) -> None:
        """name: who made the tensor, and where in the pass. advice: what to do if it is not finite."""
        self._about.append((name, advice))
        self._sums.append(tensor.sum(dtype=torch.float32))

    def check(self) -> None:
        """Raises Failed for the first tensor seen that has a number which is none."""
        if not self._sums:
            return
        finite = torch.isfinite(torch.stack(self._sums)).tolist()
        first = next((k for k, is_finite in enumerate(finite) if not is_finite), None)
        if first is None:
            return
        name, advice = self._about[first]
        raise Failed(f"{name} gave NaN or infinity, so no picture is made; {advice}")
