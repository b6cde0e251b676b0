"""Staged: the part at work comes first; the others stay as far as there is room beside it and its work. What of it does
not fit itself passes through, fetched while the rest works."""

from __future__ import annotations

from sdxl_optim.techniques.memory.offload.parts import SLOTS

SHARES = True  # whether parts that are not at work stay where there is room


def resident(part, room) -> int | None:
    """How many bytes of `part` stay on the device while it works; None for all."""
    if room.free is None or part.nbytes <= room.free:
        return None
    return max(room.free - SLOTS * part.largest, 0)
