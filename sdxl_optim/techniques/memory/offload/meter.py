"""How much memory a device has, and how much of it is taken."""

from __future__ import annotations

import torch

MARGIN = 0.03  # of what is free, left for what torch does not count


class Meter:
    """Bytes on a CUDA device. On any other there is no bound, and nothing is measured."""

    def __init__(self, device: torch.device, budget: float = 0.0):
        """budget: GB of 10^9 bytes that may be filled, 0 for all that is free."""
        self.device = torch.device(device)
        self.budget = budget
        self.measures = self.device.type == "cuda"

    def limit(self) -> int | None:
        """What tensors may take in all, or None for no bound."""
        if self.budget or not self.measures:
            return int(self.budget * 1e9) or None
        free, _ = torch.cuda.mem_get_info(self.device)
        return int((free + torch.cuda.memory_reserved(self.device)) * (1 - MARGIN))

    def used(self) -> int:
        return torch.cuda.memory_allocated(self.device) if self.measures else 0

    def peak(self) -> int:
        """The highest `used` since the last `reset`."""
        return torch.cuda.max_memory_allocated(self.device) if self.measures else 0

    def reset(self) -> None:
        if self.measures:
            torch.cuda.reset_peak_memory_stats(self.device)
