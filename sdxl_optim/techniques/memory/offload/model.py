"""Model offload: each part is on the device only while it works (as diffusers' `enable_model_cpu_offload`)."""

from __future__ import annotations

SHARES = False  # whether parts that are not at work stay where there is room


def resident(part, room) -> int | None:
    """How many bytes of `part` stay on the device while it works; None for all."""
    return None
