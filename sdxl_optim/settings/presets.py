"""Presets: named settings with a sentence that says what they are for. Those of the project are declared here; the
user's are added by their library (preset_library.py).

The project's follow the conclusions of Felix Sanz's *Ultimate guide to optimizing Stable Diffusion XL*
(https://www.felixsanz.dev/articles/ultimate-guide-to-optimizing-stable-diffusion-xl): 30 steps, guidance off for the
last quarter and the tiny VAE lose almost nothing; FreeU and the refiner at 0.9 are for the best picture. DeepCache,
which the article couldn't combine with the cutoff, is in those that are to be faster still. CUDA graphs change nothing
but rounding, and are what makes the rest pay on a fast card; without CUDA the calls are the stock ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

NONE = "none"  # in the page's row of presets, and in text: no preset
MAX_NAME = 40


@dataclass(frozen=True)
class Preset:
    """settings: a subset, in the API's shape. steps and switch_at (of the refiner, a fraction) are proposals: nothing
    but the user's click brings them into a request."""

    name: str
    about: str
    settings: dict[str, Any] = field(default_factory=dict)
    steps: int | None = None
    switch_at: float | None = None


_CUTOFF = {"enabled": True, "stop": 0.75}
_TINY_AND_GRAPHS = {"vae": {"decoder": "tiny"}, "backend": {"name": "cudagraph"}}


def _tiles(size: int) -> dict[str, Any]:
    return {"precision": "auto", "tiling": True, "tile_size": size}


BUILT_IN = (
    Preset(
        "fastest",
        "As fast as it gets: two of three steps reuse the last one's deep features. Details change.",
        {"cfg_cutoff": _CUTOFF, "deepcache": {"enabled": True, "cache_interval": 3}, **_TINY_AND_GRAPHS},
        steps=30,
    ),
    Preset(
        "fast",
        "Half of the steps reuse the last one's deep features. Details change a little.",
        {"cfg_cutoff": _CUTOFF, "deepcache": {"enabled": True, "cache_interval": 2}, **_TINY_AND_GRAPHS},
        steps=30,
    ),
    Preset(
        "balanced",
        "Every step in full, guidance off for the last quarter, the tiny VAE: faster at almost no loss.",
        {"cfg_cutoff": _CUTOFF, **_TINY_AND_GRAPHS},
        steps=30,
    ),
    Preset(
        "quality",
        "The best picture, not the fastest: full guidance, FreeU, the full VAE; a refiner, if chosen, at 0.9.",
        {"freeu": {"enabled": True}, "vae": {"decoder": "full"}},
        steps=40,
        switch_at=0.9,
    ),
    Preset(
        "vram-8gb",
        "For a card of 8 GB: parts wait in main memory when the card is full, large pictures are decoded in tiles.",
        {"cfg_cutoff": _CUTOFF, "memory": {"offload": "staged", "budget": 6.9}, "vae": _tiles(1024)},
        steps=30,
    ),
    Preset(
        "vram-6gb",
        "For a card of 6 GB: the parts take turns on the card, large pictures are decoded in tiles.",
        {"cfg_cutoff": _CUTOFF, "memory": {"offload": "staged", "budget": 5.6}, "vae": _tiles(1024)},
        steps=30,
    ),
    Preset(
        "vram-4gb",
        "For a card of 4 GB: as with 6, and the UNet's weights in fp8. Fine detail changes.",
        {
            "cfg_cutoff": _CUTOFF,
            "memory": {"offload": "staged", "budget": 3.6, "weights": "fp8"},
            "vae": _tiles(1024),
        },
        steps=30,
    ),
    Preset(
        "minimal",
        "In as little memory as possible, at whatever time that takes: layer by layer, the tiny VAE.",
        {"cfg_cutoff": _CUTOFF, "memory": {"offload": "sequential", "budget": 0.7}, "vae": {"decoder": "tiny"}},
        steps=30,
    ),
)


class KnownPresets(Sequence):
    """The presets that can be named at the moment: the project's, and the user's, which their library puts here.

    As a sequence it holds their names: the choices of the setting `preset`.
    """

    def __init__(self, built_in: Iterable[Preset]):
        self.built_in = tuple(built_in)
        self.own: tuple[Preset, ...] = ()

    def find(self, name: str | None) -> Preset | None:
        return next((p for p in (*self.built_in, *self.own) if p.name == name), None)

    def __len__(self) -> int:
        return len(self.built_in) + len(self.own)

    def __getitem__(self, i):
        return tuple(self)[i]

    def __iter__(self) -> Iterator[str]:
        return (p.name for p in (*self.built_in, *self.own))


known = KnownPresets(BUILT_IN)  # by which settings are read


def why_no_name(name: Any) -> str | None:
    """None where a user's preset may be called so, else what is allowed."""
    taken = {p.name for p in BUILT_IN} | {NONE, "off", "stock"}
    ok = isinstance(name, str) and 0 < len(name) <= MAX_NAME and name == name.strip() and name.isprintable()
    if ok and name.casefold() not in taken and not set(name) & set(',+"'):
        return None
    return f"1 to {MAX_NAME} characters without , + and quotation marks, other than {', '.join(sorted(taken))}"
