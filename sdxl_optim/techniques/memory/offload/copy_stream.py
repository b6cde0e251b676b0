"""Copies of weights to the device while it computes."""

from __future__ import annotations

import torch

from sdxl_optim.techniques.memory.offload.piece import Piece


class CopyStream:
    """A side stream for copies on CUDA; elsewhere copies run in order.

    bytes_copied: copied to the device so far.
    """

    def __init__(self, device: torch.device):
        self.device = torch.device(device)
        self._stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        self.bytes_copied = 0

    def release_cached_blocks(self) -> None:
        """Return cached blocks to the driver, so that weights are not allocated into gaps and the next call finds one
        contiguous range."""
        if self._stream is not None:
            torch.cuda.empty_cache()

    def allocate(self, nbytes: int) -> torch.Tensor:
        """Memory on the device, as a flat uint8 tensor."""
        return torch.empty(nbytes, dtype=torch.uint8, device=self.device)

    def wait_for_compute(self) -> None:
        """Later copies start after the work that is queued on the device now, which may still read the memory that they
        write to."""
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(self.device))

    def copy(self, piece: Piece, buffer: torch.Tensor) -> None:
        """Start to copy `piece` to the first bytes of `buffer`."""
        self.bytes_copied += piece.nbytes
        piece.offload()
        if self._stream is None:
            piece.prefetch(buffer)
            return
        with torch.cuda.stream(self._stream):
            piece.prefetch(buffer)
            piece.copied = self._stream.record_event()

    def wait_for_copy(self, piece: Piece) -> None:
        """Work that is queued from now on runs after the copy of `piece` has ended."""
        if piece.copied is not None:
            torch.cuda.current_stream(self.device).wait_event(piece.copied)
            piece.copied = None
