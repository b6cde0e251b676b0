"""Copies to the device beside its work."""

from __future__ import annotations

import torch

from sdxl_optim.techniques.memory.offload.pieces import Piece


class Lane:
    """A stream of copies of its own on CUDA, the ordinary order of things elsewhere."""

    def __init__(self, device: torch.device):
        self.device = torch.device(device)
        self._stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        self.moved = 0  # bytes brought to the device

    def tidy(self) -> None:
        """What the allocator keeps for later goes back to the device: else weights lie down between the remains of
        work, and for the next work there are gaps alone."""
        if self._stream is not None:
            torch.cuda.empty_cache()

    def new(self, nbytes: int) -> torch.Tensor:
        """Memory on the device."""
        return torch.empty(nbytes, dtype=torch.uint8, device=self.device)

    def follow(self) -> None:
        """Copies asked for from here on start once the device has done all work asked for so far: only then is the
        memory that they write to free."""
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(self.device))

    def fetch(self, piece: Piece, buffer: torch.Tensor) -> torch.cuda.Event | None:
        """Start the copy. The event is its end."""
        self.moved += piece.nbytes
        piece.go_home()
        if self._stream is None:
            piece.fetch(buffer)
            return None
        with torch.cuda.stream(self._stream):
            piece.fetch(buffer)
            return self._stream.record_event()

    def wait(self, event: torch.cuda.Event | None) -> None:
        """Work asked for from here on comes after that copy."""
        if event is not None:
            torch.cuda.current_stream(self.device).wait_event(event)
