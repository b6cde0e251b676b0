"""Sequential offload: a few layers are on the device at a time, the next ones on their way (as diffusers'
`enable_sequential_cpu_offload`, which does not overlap the two)."""

from __future__ import annotations

SHARES = False  # whether parts that are not at work stay where there is room


def resident(part, room) -> int | None:
    """How many bytes of `part` stay on the device while it works; None for all."""
    return 0
