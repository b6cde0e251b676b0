"""What a technique is. There are two scopes: a technique *of the pass* acts on the UNet's calls while one sampler loop
runs; a technique *of the request* holds from the request's beginning to its end (weights, VAE, torch's switches).

Each is one folder or file and one entry in the list of `techniques/__init__.py`. Plan, run, report and live plan go
through that list and know no technique by name. No torch: what needs it is imported where it is attached.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Hashable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from sdxl_optim.sampling.call import UNetCall
from sdxl_optim.sampling.facts import Facts, RequestFacts
from sdxl_optim.sampling.loop import Counts, StepPlan
from sdxl_optim.sampling.note import Note
from sdxl_optim.settings import Settings
from sdxl_optim.wording import Text


@dataclass(frozen=True)
class Decision:
    """config: what will act, in the technique's own terms; None where nothing does. notes: what there is to say of it.

    steps: the sampler steps in which it acts; None for all, also of a loop whose length can't be foreseen.
    cached_share: where it makes calls cheaper, what such a call still costs as a share of a full one (0 to 1), or None
    where that can't be told.
    """

    config: Any = None
    notes: tuple[Note, ...] = ()
    steps: Collection[int] | None = None
    cached_share: float | None = None

    def acts_in(self, step: int) -> bool:
        return self.config is not None and (self.steps is None or step in self.steps)


class Forecast(Protocol):
    """Foretells which UNet calls of a pass are cached, call by call."""

    def cached(self, step: StepPlan, place: Hashable, rows: int, cond_rows: int, model: int) -> bool: ...


class Attachment(Protocol):
    """A technique at work on one UNet."""

    def begin(self, call: UNetCall) -> UNetCall:
        """A UNet call begins: the call with what the technique does in it. Called in the order of the list."""


class Site(Protocol):
    """Where a technique is attached: one UNet in one run. unet: a torch module."""

    unet: Any

    def current(self) -> UNetCall | None:
        """The UNet call under way."""

    def layout(self) -> Any:
        """The UNet's blocks (`unet.layout.Layout`). Raises Unsupported where they can't be told."""

    def note(self, note: Note) -> None:
        """Put a note into the report."""

    def kept(self, nbytes: int) -> None:
        """Report how many bytes of features were kept, at most."""


class Counted(Protocol):
    """What was counted in a pass. acted: by technique, the model evaluations whose result it changed. execution: what a
    backend did (`report.Executed`). store_bytes: of features kept for later calls, at most."""

    counts: Counts
    acted: Counter[str]
    execution: Any
    store_bytes: int


class PassTechnique:
    """Acts on the UNet's calls of one sampler loop. key: its group in the settings. feature: its name in notes.

    by_step: whether it may act in some steps and not in others. drops_uncond: where it acts, the uncond rows are not
    computed; the host leaves them out.
    """

    key: str
    feature: Text
    by_step = True
    drops_uncond = False

    def decide(self, settings: Settings, facts: Facts) -> Decision:
        """Whether it runs in this pass, in which steps, and what there is to say of it."""
        raise NotImplementedError

    def forecast(self, config: Any) -> Forecast | None:
        """For a technique that keeps calls cheap by reusing what earlier ones computed."""
        return None

    def attached(self, site: Site, config: Any) -> AbstractContextManager[Attachment] | None:
        """Context manager: it acts on the site's UNet, which afterwards is what it was. None where it has nothing to
        put there. Raises Unsupported."""
        return None

    def planned(self, config: Any, steps: int, acting: int, first: int | None, counts: Counts | None) -> list[Text]:
        """The live plan's words. steps: of the loop; acting: those in which it acts, `first` being the first of them;
        counts: None for a loop that can't be foreseen."""
        return []

    def happened(self, report: Counted) -> list[Text]:
        """The report's words, from what was counted."""
        return []

    def measured(self, report: Counted) -> dict[str, Any]:
        """What was counted, by name, for programs."""
        return {}

    def refused(self, reason: Text) -> Decision:
        return Decision(notes=(Note(self.feature, reason),))


class RequestTechnique:
    """Holds for a whole request. setting: the name of the setting that asks for it. feature: its name in notes."""

    setting: str
    feature: Text

    def decide(self, settings: Settings, facts: RequestFacts) -> Decision:
        """Whether it runs for this request, and what there is to say of it."""
        raise NotImplementedError

    def planned(self, config: Any) -> list[Text]:
        """The live plan's words."""
        return []

    def refused(self, reason: Text) -> Decision:
        return Decision(notes=(Note(self.feature, reason),))

    def said(self, text: Text) -> Note:
        return Note(self.feature, text, refused=False)
