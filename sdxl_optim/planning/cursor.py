"""Walks over a pass's planned calls while it runs. No torch."""

from __future__ import annotations

from collections.abc import Callable

from sdxl_optim.planning.plan import Plan
from sdxl_optim.sampling.loop import Call, StepPlan
from sdxl_optim.sampling.note import Note


class CallCursor:
    """Which planned call is next, and what its step does. A call beyond the plan has no `Call`, and does what the plan
    does always."""

    def __init__(self, plan: Plan, note: Callable[[Note], None]):
        """note: puts a note into the report."""
        self._plan, self._note = plan, note
        self.begun = 0  # calls

    @property
    def at_end(self) -> bool:
        return self.begun >= len(self._plan.loop.calls)

    def peek(self) -> tuple[Call | None, StepPlan]:
        """The next call, before it is begun."""
        if self.at_end:
            return None, self._plan.always
        call = self._plan.loop.calls[self.begun]
        return call, self._plan.step(call.step)

    def advance(self) -> tuple[Call | None, StepPlan]:
        """A call begins. One too many is noted."""
        call, step = self.peek()
        if call is None and self._plan.loop.foreseeable:
            text = "the sampler made more calls than foreseen; these ran uncached"
            self._note(Note("schedule", text))
        self.begun += 1
        return call, step

    @property
    def model_changes(self) -> bool:
        """Whether the next call is answered by another model than the last one (also before the first)."""
        calls = self._plan.loop.calls
        if self.begun == 0:
            return True
        return not self.at_end and calls[self.begun].model != calls[self.begun - 1].model
