"""What really happened: counts, times, bytes and refusals, as they occurred. No torch, no host."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from sdxl_optim.planning.plan import Note, Plan
from sdxl_optim.sampling.loop import Counts
from sdxl_optim.wording import joined, words


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

    def facts(self) -> list[str]:
        parts = []
        if self.replays:
            parts.append(words("{n} by {backend}", n=self.replays, backend=self.backend))
        if self.fallbacks:
            parts.append(f"{self.fallbacks} eager instead")
        return parts

    def preparation(self) -> list[str]:
        """For people: what getting ready took, and when it is paid back."""
        if not self.prepared:
            return []
        head = words("{backend} prepared {n} kinds of call in ", backend=self.backend, n=self.prepared)
        pays = f"pays off after {self.break_even} like this" if self.break_even else "does not pay off here"
        memory = [f"{self.nbytes / 2**20:.0f} MiB"] if self.nbytes else []
        return [head, joined([f"{self.ready_seconds:.1f} s", *memory, pays], by=", "), "; "]


@dataclass
class PassReport:
    """One sampling pass. `counts` is filled while it runs; `plan.prediction` is what it should come to."""

    name: str
    plan: Plan
    counts: Counts = Counts()
    extra_calls: int = 0  # UNet calls made by others meanwhile
    freeu_calls: int = 0  # calls in which it changed something; not cached ones that skip its blocks
    store_bytes: int = 0
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

    def fall_back(self, backend: str, reason: str) -> None:
        """A call runs eagerly instead; said once for each reason."""
        self.execution.fallbacks += 1
        self.add_note(Note(words("backend {name}", name=backend), joined([reason, "the calls ran eagerly"], by="; ")))

    @property
    def as_predicted(self) -> bool | None:
        """Whether a finished pass came to what was foreseen; None where nothing could be."""
        if self.plan.prediction is None or not self.finished or self.stopped:
            return None
        return self.plan.prediction == self.counts

    def facts(self) -> list[str]:
        """What ran, in a few words each."""
        c = self.counts
        parts = [f"{c.calls} calls", f"{c.rows} of {c.stock_rows} rows"]
        if c.cached:
            parts.append(f"{c.full} full and {c.cached} cached")
        if self.freeu_calls:
            parts.append(f"FreeU in {self.freeu_calls}")
        parts += self.execution.facts()
        if self.extra_calls:
            parts.append(f"{self.extra_calls} calls by others uncached")
        if self.stopped:
            parts.append("stopped")
        if self.as_predicted is False:
            parts.append("not as planned")
        return parts


@dataclass(frozen=True)
class Peak:
    """Of a stage, in bytes: what tensors took, and what torch held for them."""

    allocated: int
    reserved: int


@dataclass
class JobReport:
    """One request: its passes by iteration, and what concerns all of them."""

    passes: dict[int, list[PassReport]] = field(default_factory=dict)
    notes: list[Note] = field(default_factory=list)
    decoder: str | None = None
    seconds: float = 0.0
    compared: str | None = None  # its time, held against another run's
    vae: list[str] = field(default_factory=list)  # what it did, in a few words each
    memory: list[str] = field(default_factory=list)  # where the weights were, likewise
    peaks: dict[str, Peak] = field(default_factory=dict)  # by stage, in their order

    def add_peak(self, stage: str, allocated: int, reserved: int) -> None:
        """A stage's peak in bytes; of a stage that comes again, the higher one counts."""
        before = self.peaks.get(stage, Peak(0, 0))
        self.peaks[stage] = Peak(max(before.allocated, allocated), max(before.reserved, reserved))

    @property
    def peak_stage(self) -> str | None:
        """The stage that set the peak of what was allocated."""
        return max(self.peaks, key=lambda stage: self.peaks[stage].allocated, default=None)

    def add_pass(self, iteration: int, report: PassReport) -> None:
        self.passes.setdefault(iteration, []).append(report)

    def add_note(self, note: Note) -> None:
        if note not in self.notes:
            self.notes.append(note)

    @property
    def all_passes(self) -> list[PassReport]:
        """The passes of all iterations, in the order in which they ran."""
        return [p for passes in self.passes.values() for p in passes]

    def all_notes(self, iteration: int | None = None) -> list[Note]:
        passes = self.all_passes if iteration is None else self.passes.get(iteration, [])
        return list(dict.fromkeys([*self.notes, *(note for p in passes for note in p.notes)]))

    def result(self, iteration: int) -> str | None:
        """The infotext of one iteration's pictures, or None before its first pass."""
        passes = self.passes.get(iteration)
        if not passes:
            return None
        texts = [", ".join(p.facts()) for p in passes]
        if len(passes) > 1:
            texts = [f"{p.name} {text}" for p, text in zip(passes, texts, strict=True)]
        return "; ".join(texts)

    def refusals(self, iteration: int) -> str | None:
        return "; ".join(map(str, self.all_notes(iteration))) or None

    def lines(self) -> list[str]:
        """The whole job for people: one line a pass, then the notes."""
        lines = []
        for iteration, passes in sorted(self.passes.items()):
            for p in passes:
                where = [p.name] if len(self.passes) == 1 else [f"batch {iteration + 1}", ", ", p.name]
                store = [f"store {p.store_bytes / 2**20:.1f} MiB"] if p.store_bytes else []
                facts = joined([*p.facts(), *store], by=", ")
                lines.append(joined([*where, ": ", facts, "; ", *p.execution.preparation(), f"{p.seconds:.2f} s"]))
        if self.decoder:
            lines.append(words("decoded by {decoder}", decoder=self.decoder))
        if self.compared:
            lines.append(self.compared)
        for facts in (self.vae, self.memory):
            if facts:
                lines.append(joined(facts, by=", "))
        if self.peaks:
            lines.append(self._peaks())
        return lines + [str(note) for note in self.all_notes()]

    def _peaks(self) -> str:
        each = [
            joined([stage, f" {p.allocated / 1e9:.2f} ({p.reserved / 1e9:.2f}) GB"]) for stage, p in self.peaks.items()
        ]
        head = "peak memory, allocated (reserved): "
        return joined([head, joined(each, by=", "), "; ", words("set by {stage}", stage=self.peak_stage)])
