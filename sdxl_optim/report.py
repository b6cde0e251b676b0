"""What really happened: counts, times, bytes and refusals, as they occurred, as data. `sentences.py` puts them into
words. No torch, no host."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field

from sdxl_optim.planning.plan import Plan
from sdxl_optim.sampling.loop import Counts
from sdxl_optim.sampling.note import Note
from sdxl_optim.techniques.memory.counts import MemoryReport
from sdxl_optim.techniques.vae.counts import VaeReport
from sdxl_optim.wording import Text, joined, message


@dataclass
class Executed:
    """What a backend did in one pass. ready_seconds: spent preparing calls; saved_seconds: by replays, as measured once
    for each prepared call."""

    backend: str = "eager"
    replays: int = 0
    fallbacks: int = 0  # calls that ran eagerly instead
    prepared: int = 0
    ready_seconds: float = 0.0
    saved_seconds: float = 0.0
    nbytes: int = 0  # kept for prepared calls on the device

    def count_prepared(self, seconds: float, nbytes: int) -> None:
        self.prepared += 1
        self.ready_seconds += seconds
        self.nbytes = max(self.nbytes, nbytes)

    def count_replay(self, saved_seconds: float) -> None:
        self.replays += 1
        self.saved_seconds += saved_seconds

    @property
    def break_even(self) -> int | None:
        """After how many passes like this one the preparation is paid back; None where it never is."""
        return math.ceil(self.ready_seconds / self.saved_seconds) if self.saved_seconds > 0 else None


@dataclass
class PassReport:
    """One sampling pass. `counts` is filled while it runs; `plan.prediction` is what it should come to."""

    name: str
    plan: Plan
    counts: Counts = Counts()
    extra_calls: int = 0  # UNet calls made by others meanwhile
    acted: Counter[str] = field(default_factory=Counter)  # by technique: model evaluations whose result it changed
    store_bytes: int = 0  # of features kept for later calls, at most
    execution: Executed = field(default_factory=Executed)
    seconds: float = 0.0
    finished: bool = False
    stopped: bool = False  # by the user, before its last step
    notes: list[Note] = field(default_factory=list)

    def __post_init__(self):
        self.notes.extend(self.plan.notes)

    def count_call(self, stock_rows: int) -> None:
        self.counts += Counts(calls=1, stock_rows=stock_rows)

    def count_unet(self, rows: int, ours: bool, cached: bool) -> None:
        if ours:
            self.counts += Counts(full=not cached, cached=cached, rows=rows, cached_rows=rows * cached)
        else:
            self.extra_calls += 1

    def add_note(self, note: Note) -> None:
        if note not in self.notes:
            self.notes.append(note)

    def fall_back(self, backend: str, reason: Text) -> None:
        """A call runs eagerly instead; said once for each reason."""
        self.execution.fallbacks += 1
        text = joined([reason, "the calls ran eagerly"], by="; ")
        self.add_note(Note(message("backend {name}", name=backend), text))

    @property
    def as_predicted(self) -> bool | None:
        """Whether a finished pass came to what was foreseen; None where nothing could be."""
        if self.plan.prediction is None or not self.finished or self.stopped:
            return None
        return self.plan.prediction == self.counts


@dataclass(frozen=True)
class Peak:
    """Of a stage, in bytes: what tensors took, and what torch held for them."""

    allocated: int
    reserved: int


@dataclass(frozen=True)
class Comparison:
    """This request's time beside that of the last stock run of its size."""

    seconds: float
    stock_seconds: float
    stock_steps: int
    stock_sampler: str


@dataclass
class JobReport:
    """One request: its passes by iteration, and what concerns all of them."""

    passes: dict[int, list[PassReport]] = field(default_factory=dict)
    notes: list[Note] = field(default_factory=list)
    decoder: str | None = None
    seconds: float = 0.0
    compared: Comparison | None = None
    vae: VaeReport | None = None
    memory: MemoryReport | None = None
    peaks: dict[str, Peak] = field(default_factory=dict)  # by stage, in their order

    def add_peak(self, stage: str, allocated: int, reserved: int) -> None:
        """A stage's peak in bytes; of a stage that comes again, the higher one counts."""
        before = self.peaks.get(stage, Peak(0, 0))
        self.peaks[stage] = Peak(max(before.allocated, allocated), max(before.reserved, reserved))

    @property
    def peak_stage(self) -> str | None:
        """The stage that set the peak of what was allocated."""
        return max(self.peaks, key=lambda stage: self.peaks[stage].allocated, default=None)

    @property
    def all_passes(self) -> list[PassReport]:
        """The passes of all iterations, in their order."""
        return [one for passes in self.passes.values() for one in passes]

    def add_pass(self, iteration: int, report: PassReport) -> None:
        self.passes.setdefault(iteration, []).append(report)

    def add_note(self, note: Note) -> None:
        if note not in self.notes:
            self.notes.append(note)

    def all_notes(self, iteration: int | None = None) -> list[Note]:
        passes = [p for i, ps in self.passes.items() if iteration in (None, i) for p in ps]
        return list(dict.fromkeys([*self.notes, *(note for p in passes for note in p.notes)]))
