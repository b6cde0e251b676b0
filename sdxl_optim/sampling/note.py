"""One sentence for the user about one technique."""

from __future__ import annotations

from dataclasses import dataclass

from sdxl_optim.wording import Text, joined


@dataclass(frozen=True)
class Note:
    """feature: the technique's name, text: what there is to say of it. `refused` when it does not run."""

    feature: Text
    text: Text
    refused: bool = True

    def __str__(self) -> str:
        return str(self.sentence)

    @property
    def sentence(self) -> Text:
        return joined([self.feature, " ", "refused" if self.refused else "note", ": ", self.text])
