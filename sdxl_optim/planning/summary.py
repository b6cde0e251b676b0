"""A plan in a line for people, before it runs."""

from __future__ import annotations

from sdxl_optim.planning.plan import Note, Plan
from sdxl_optim.wording import joined, words


def summary(plan: Plan) -> list[str]:
    """What will run, in a few words each: "30 steps", "10 full and 20 cached", …"""
    if not plan.loop.foreseeable:
        parts = [f"at least {plan.loop.at_least} calls", "this sampler chooses its steps while it runs"]
        return parts + (["guidance off"] if plan.always.cut else []) + (["FreeU"] if plan.freeu else [])
    counts, n = plan.prediction, plan.loop.n
    parts = [f"{n} steps" if counts.calls == n else f"{n} steps in {counts.calls} calls"]
    if counts.cached:
        parts.append(f"{counts.full} full and {counts.cached} cached")
    if plan.cut_from is not None:
        parts.append(f"guidance off after step {plan.cut_from}" if plan.cut_from else "guidance off")
    if plan.freeu:
        steps = sum(step.freeu for step in plan.steps)
        parts.append("FreeU" if steps == n else f"FreeU in {steps} steps")
    work = plan.work(counts)
    if work is not None and work < 0.995:
        parts.append(f"about {100 * work:.0f} % of the work")
    if plan.backend != "eager":
        parts.append(words("{name}", name=plan.backend))
    return parts


def lines(plans: dict[str, Plan], more: list[str], notes: list[Note]) -> tuple[list[str], list[str]]:
    """One line a pass, with `more` behind the last; and what is refused or to be said, once each."""
    parts = [summary(plan) for plan in plans.values()]
    parts[-1] += more
    named = [joined(part, by="; ") for part in parts]
    if len(plans) > 1:
        named = [joined([name, ": ", line]) for name, line in zip(plans, named, strict=True)]
    said = [note for plan in plans.values() for note in plan.notes] + notes
    return named, list(dict.fromkeys(map(str, said)))
