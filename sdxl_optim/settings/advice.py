"""What to choose on this machine, in a sentence, and which flags stand in the way. No torch, no host: the host gathers
the facts, and what it can't know is None and left out.

Where a figure is named, it was measured on an H200 with the WebUI's stock SDXL at 1024×1024: peaks of 9.1 GiB with a
half-precision VAE and 11.1 GiB in full precision; `--medvram` 1.5 times and `--lowvram` 18 times the time.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from sdxl_optim.settings import presets
from sdxl_optim.wording import Text, joined, message

GIB = 2**30
FEW_STEPS = re.compile(r"turbo|lightning|lcm|hyper", re.IGNORECASE)


@dataclass(frozen=True)
class Machine:
    """device: cuda, cpu, mps, …; memory: of the card, in bytes. kind: sdxl, sd1, sd2, sd3 or None; attention: the
    optimisation in force, as the WebUI names it. host_offloads: it moves the model's parts itself."""

    device: str | None = None
    memory: int | None = None
    capability: tuple[int, int] | None = None
    torch: str | None = None
    triton: bool | None = None
    kind: str | None = None
    checkpoint: str | None = None
    medvram: bool = False
    lowvram: bool = False
    no_half: bool = False
    no_half_vae: bool = False
    attention: str | None = None
    host_offloads: bool = False


def advise(machine: Machine) -> list[Text]:
    """What to choose and why, then a sentence for each flag that costs more than it brings. Empty where nothing is
    known."""
    return [*_choice(machine), *_flags(machine)]


def _choice(m: Machine) -> list[Text]:
    if m.checkpoint and FEW_STEPS.search(m.checkpoint):
        text = (
            "{checkpoint} makes its pictures in a few steps, going by its name: leave the presets off,"
            " and at CFG scale {scale} switch CFG cutoff on."
        )
        return [message(text, checkpoint=m.checkpoint, scale=1)]
    if m.device is None:
        return []
    if m.device != "cuda":
        return ["Without a graphics card of CUDA's every step counts: choose the preset fastest."]
    if m.memory is None:
        return []
    gib = m.memory / GIB
    moved = m.medvram or m.lowvram or m.host_offloads
    budget = _budget(gib) if m.kind == "sdxl" and not moved else None
    if budget:
        text = "choose the preset {preset}, which fits SDXL into it."
        return [joined([message("The card has {size:.0f} GiB", size=gib), ": ", message(text, preset=budget)])]
    if m.kind == "sdxl" and gib < 9.5:
        text = "choose the preset balanced, whose tiny VAE takes the least memory to decode."
    else:
        text = "choose the preset balanced, or fast where details may change a little."
    return [joined([message("The card has {size:.0f} GiB", size=gib), ": ", text])]


def _budget(gib: float) -> str | None:
    """The memory preset for a card of so many GiB; None where there is none or none is needed."""
    limits = (("vram-4gb", 5.5), ("vram-6gb", 7.5), ("vram-8gb", 9.5))
    return next((name for name, limit in limits if gib < limit and presets.known.find(name)), None)


def _flags(m: Machine) -> list[Text]:
    found: list[Text] = []
    gib = None if m.memory is None else m.memory / GIB
    if m.lowvram:
        found.append("--lowvram takes many times as long: use --medvram, or leave both out.")
    elif m.medvram and gib is not None and gib >= 11.5:
        text = "--medvram takes about {factor} times as long, and is not needed with {size:.0f} GiB: leave it out."
        found.append(message(text, factor=1.5, size=gib))
    if m.no_half and m.device == "cuda":
        found.append("--no-half computes at double the size: leave it out unless pictures turn out black.")
    elif m.no_half_vae and m.device == "cuda":
        found.append(message("--no-half-vae takes {size} GiB more to decode: the tiny VAE does without.", size=2))
    if m.device == "cuda" and m.attention in ("Doggettx", "InvokeAI", "V1", "sub-quadratic", "None"):
        text = (
            "Attention is computed by {name}, which is slower than sdp:"
            " choose that in the settings, under Optimizations."
        )
        found.append(message(text, name=m.attention))
    return found
