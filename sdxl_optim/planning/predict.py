"""The exact counts of a pass, by the same rules as at run time, without tensors. No torch."""

from __future__ import annotations

from collections.abc import Sequence

from sdxl_optim.sampling.loop import Counts, Loop, Rows, StepPlan
from sdxl_optim.techniques.base import Forecast


def predict(steps: Sequence[StepPlan], loop: Loop, rows: Rows, forecasts: Sequence[Forecast] = ()) -> Counts:
    """The counts of a run that follows `steps`. forecasts: of the techniques that reuse what earlier calls computed."""
    total = Counts()
    for call in loop.calls:
        step = steps[call.step]
        stock = rows.unet_calls(not call.host_skips, call.same_length)
        parts = rows.unet_calls(not (call.host_skips or step.drops_uncond), call.same_length)
        full = cached = cached_rows = 0
        for part, count in enumerate(parts):
            place = (call.place, part)
            if any([forecast.cached(step, place, count, rows.cond, call.model) for forecast in forecasts]):
                cached += 1
                cached_rows += count
            else:
                full += 1
        total += Counts(1, full, cached, sum(parts), sum(stock), cached_rows)
    return total
