"""Where the weights were, as data and in words. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from sdxl_optim.wording import Text, joined, message

GB = 1e9


@dataclass(frozen=True)
class MemoryReport:
    """Where the weights were. fp8: the UNet is stored in 8 bits; fp8_saved: bytes that this saves, where counted.

    offload: the policy's name. moved: bytes brought to the device for this request; None where nobody counts them.
    streamed: bytes of the UNet that pass through at each call.
    """

    fp8: bool = False
    fp8_saved: int | None = None
    offload: str | None = None
    moved: int | None = None
    streamed: int = 0

    def happened(self) -> list[Text]:
        """The report's words."""
        facts: list[Text] = []
        if self.fp8_saved is not None:
            facts.append(message("UNet in fp8 saves {size:.2f} GB", size=self.fp8_saved / GB))
        elif self.fp8:
            facts.append("UNet in fp8")
        if self.moved is not None:
            moved = message("moved {size:.2f} GB", size=self.moved / GB)
            facts.append(joined([self.offload or "", "offload", moved], by=" "))
        elif self.offload:
            facts.append(joined([self.offload, "offload"], by=" "))
        if self.streamed:
            facts.append(message("{size:.2f} GB of the UNet pass through at each call", size=self.streamed / GB))
        return facts
