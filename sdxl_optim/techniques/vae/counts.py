"""What the VAE did, as data and in words. No torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from sdxl_optim.wording import Text, message


@dataclass
class VaeReport:
    """What the VAE did while patched. precision: of its last decode or encode. tiles: of all of them. tile_size: pixels
    along a tile's side, where tiles are counted by somebody else."""

    precision: str = ""
    tiles: int = 0
    tile_size: int | None = None
    norms: bool = False  # whether tiles had the norms of their picture
    retries: list[Text] = field(default_factory=list)  # one sentence for each reason why something was computed again

    def say(self, text: Text) -> None:
        if text not in self.retries:
            self.retries.append(text)

    def happened(self) -> list[Text]:
        """The report's words."""
        facts: list[Text] = []
        if self.precision:
            facts.append(message("VAE in {precision}", precision=self.precision))
        if self.tiles:
            facts.append(message("{n} tiles", n=self.tiles))
        if self.norms:
            facts.append("norms of the whole picture")
        if self.tile_size:
            facts.append(message("tiles of {size}", size=self.tile_size))
        return facts
