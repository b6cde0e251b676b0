"""Which VAE decodes, in which precision, and in tiles of what size. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sdxl_optim.sampling.facts import RequestFacts
from sdxl_optim.sampling.note import Note
from sdxl_optim.settings import Settings
from sdxl_optim.techniques.base import Decision, RequestTechnique
from sdxl_optim.wording import Text, message

TINY = "vae.decoder=tiny"  # in a host's facts: what concerns the tiny decoder alone


class Decoder(RequestTechnique):
    """Its config is "tiny" or "full"."""

    setting = "vae.decoder"
    feature = "VAE decoder"

    def decide(self, settings: Settings, facts: RequestFacts) -> Decision:
        wanted = settings.vae.decoder
        if wanted == "host":
            return Decision()
        if reason := facts.cannot.get(self.setting):
            return self.refused(reason)
        if wanted != "tiny":
            return Decision(wanted)
        if reason := facts.cannot.get(TINY):
            return Decision(notes=(Note("Tiny VAE", reason),))
        said = facts.said.get(TINY)
        return Decision(wanted, (Note("Tiny VAE", said, refused=False),) if said else ())

    def planned(self, config: Any) -> list[Text]:
        return ["Tiny VAE" if config == "tiny" else "full VAE"]


class Precision(RequestTechnique):
    """Its config is fp16, bf16 or fp32.

    auto: bf16, which has fp32's range, where the card computes in it; fp16 with a VAE made for it; else fp32.
    """

    setting = "vae.precision"
    feature = "VAE precision"

    def decide(self, settings: Settings, facts: RequestFacts) -> Decision:
        wanted = settings.vae.precision
        if wanted == "host":
            return Decision()
        if reason := facts.cannot.get(self.setting):
            return self.refused(reason)
        if wanted == "auto":
            return Decision(facts.vae_precision)
        if wanted == "fp16" and facts.device == "cpu":
            return Decision("fp32", (self.said("the CPU does not compute in fp16; fp32 is used"),))
        return Decision(wanted)


@dataclass(frozen=True)
class Tiles:
    """size: pixels along a tile's side. norms: whose statistics its group norms take, "tile" or "picture"."""

    size: int
    norms: str


class Tiling(RequestTechnique):
    """Its config is `Tiles`."""

    setting = "vae.tiling"
    feature = "VAE tiling"

    def decide(self, settings: Settings, facts: RequestFacts) -> Decision:
        if not settings.vae.tiling:
            return Decision()
        if reason := facts.cannot.get(self.setting):
            return self.refused(reason)
        notes: list[Note] = []
        size, norms = settings.vae.tile_size, settings.vae.tile_norms
        if facts.largest_tile is not None and facts.largest_tile < size:
            size = facts.largest_tile
            notes.append(self.said(message("tiles of {size}, as larger ones need more than the budget", size=size)))
        if norms == "picture" and (reason := facts.cannot.get("vae.tile_norms")):
            norms = "tile"
            notes.append(Note("VAE tile norms", reason))
        return Decision(Tiles(size, norms), tuple(notes))

    def planned(self, config: Any) -> list[Text]:
        return ["VAE in tiles"]
