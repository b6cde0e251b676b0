"""Settings + facts → plans: what will happen in this request and on this model, size and sampler, and what was refused
and why. Each technique decides for itself. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sdxl_optim import settings as declared
from sdxl_optim.planning.predict import predict
from sdxl_optim.sampling.facts import Facts, RequestFacts
from sdxl_optim.sampling.loop import Counts, Loop, Rows, StepPlan
from sdxl_optim.sampling.note import Note
from sdxl_optim.settings import Settings
from sdxl_optim.techniques import OF_THE_PASS, OF_THE_REQUEST
from sdxl_optim.techniques.base import Decision, PassTechnique, RequestTechnique
from sdxl_optim.wording import message


@dataclass(frozen=True)
class Plan:
    """What will run in one sampling pass. `steps` has one StepPlan a sampler step; empty where the loop can't be
    foreseen, and then `always` holds for every step.

    decisions: of the techniques of the pass, in the order of their list. notes: theirs, and what else there is to say.
    prediction: exact counts; None where the loop can't be foreseen.
    """

    loop: Loop
    rows: Rows
    decisions: tuple[tuple[PassTechnique, Decision], ...] = ()
    steps: tuple[StepPlan, ...] = ()
    always: StepPlan = StepPlan()
    notes: tuple[Note, ...] = ()
    prediction: Counts | None = None

    @property
    def running(self) -> list[tuple[PassTechnique, Decision]]:
        """The techniques that will act, with what was decided."""
        return [(technique, decision) for technique, decision in self.decisions if decision.config is not None]

    def config(self, key: str) -> Any:
        """What the technique of that key was decided to do; None where it does not run."""
        return next((decision.config for technique, decision in self.running if technique.key == key), None)

    @property
    def cut_from(self) -> int | None:
        """The first step without uncond rows, or None."""
        return next((i for i, step in enumerate(self.steps) if step.drops_uncond), None)

    def work(self, counts: Counts) -> float | None:
        """About which share of a stock run's sampling arithmetic `counts` come to; None where it can't be told."""
        shares = [decision.cached_share for _, decision in self.running if decision.cached_share is not None]
        if not counts.stock_rows or (counts.cached_rows and not shares):
            return None
        spared = counts.cached_rows * (1 - min(shares, default=1.0))
        return (counts.rows - spared) / counts.stock_rows

    def step(self, i: int) -> StepPlan:
        return self.steps[i] if i < len(self.steps) else self.always


def make_plan(settings: Settings, facts: Facts) -> Plan:
    """Decide everything about a pass that can be decided before its first step."""
    decisions = tuple((technique, technique.decide(settings, facts)) for technique in OF_THE_PASS)
    notes = [*_against_preset(settings), *(note for _, decision in decisions for note in decision.notes)]
    if not facts.loop.foreseeable:
        always = _step_plan(decisions, None)
        return Plan(facts.loop, facts.rows, decisions, always=always, notes=tuple(notes))
    steps = tuple(_step_plan(decisions, i) for i in range(facts.loop.n))
    running = [(technique, decision.config) for technique, decision in decisions if decision.config is not None]
    forecasts = filter(None, (technique.forecast(config) for technique, config in running))
    prediction = predict(steps, facts.loop, facts.rows, [*forecasts])
    last = steps[-1] if steps else StepPlan()
    return Plan(facts.loop, facts.rows, decisions, steps, last, tuple(notes), prediction)


def _step_plan(decisions: tuple[tuple[PassTechnique, Decision], ...], step: int | None) -> StepPlan:
    """step: its number, or None for every step of a loop that can't be foreseen."""
    acting = [
        technique
        for technique, decision in decisions
        if technique.by_step
        and (decision.acts_in(step) if step is not None else decision.config is not None and decision.steps is None)
    ]
    return StepPlan(frozenset(t.key for t in acting), any(t.drops_uncond for t in acting))


def _against_preset(settings: Settings) -> list[Note]:
    """What the user set otherwise than the preset has it."""
    notes = []
    by_path = {f.path: f for f in declared.fields()}
    for path, value in declared.preset_values(settings.preset).items():
        used = declared.get(settings, path)
        if used != value:
            names = {"preset": settings.preset, "title": by_path[path].title, "value": value, "used": used}
            text = message("{preset} has {title} {value}; {used} is used, as set", **names)
            notes.append(Note("preset", text, refused=False))
    return notes


@dataclass(frozen=True)
class RequestPlan:
    """What will hold for a whole request, decided for the model that is loaded."""

    decisions: tuple[tuple[RequestTechnique, Decision], ...] = ()

    def config(self, setting: str) -> Any:
        """What the technique of that setting was decided to do; None where it does not run."""
        return next((d.config for t, d in self.decisions if t.setting == setting), None)

    @property
    def notes(self) -> tuple[Note, ...]:
        return tuple(note for _, decision in self.decisions for note in decision.notes)


def plan_request(settings: Settings, facts: RequestFacts) -> RequestPlan:
    """Decide what holds for the whole request."""
    return RequestPlan(tuple((technique, technique.decide(settings, facts)) for technique in OF_THE_REQUEST))
