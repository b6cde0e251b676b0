"""Staged: the text encoders leave after encoding, the VAE after its work; the UNet stays where it fits. What of a part
does not fit passes through, fetched while the rest works."""

from __future__ import annotations

from sdxl_optim.memory.parts import SLOTS

KEPT = "unet"


def keeps(other, part, room) -> bool:
    """Whether `other` stays on the device while `part` comes."""
    return other.name == KEPT and (room.free is None or part.nbytes <= room.free)


def resident(part, room) -> int | None:
    """How many bytes of `part` stay on the device while it works; None for all."""
    if room.free is None or part.nbytes <= room.free:
        return None
    return max(room.free - SLOTS * part.largest, 0)
