"""Plans and reports in sentences, for the page, the infotext, the log and the command line. No torch, no host."""

from __future__ import annotations

from sdxl_optim.planning.plan import Plan, RequestPlan
from sdxl_optim.report import Comparison, Executed, JobReport, PassReport
from sdxl_optim.wording import Text, joined, message

MIB, GB = 2**20, 1e9

# --- before: the live plan


def planned(plan: Plan) -> list[Text]:
    """What will run in a pass, in a few words each: "30 steps", "10 full and 20 cached", …"""
    counts, n = plan.prediction, plan.loop.n
    if counts is None:
        parts: list[Text] = [message("at least {n} calls", n=plan.loop.at_least)]
        parts.append("this sampler chooses its steps while it runs")
    elif counts.calls == n:
        parts = [message("{n} steps", n=n)]
    else:
        parts = [message("{n} steps in {calls} calls", n=n, calls=counts.calls)]
    by_step: list[Text] = []
    others: list[Text] = []
    for technique, decision in plan.running:
        acting = [i for i in range(n) if decision.acts_in(i)]
        if counts is None:
            acting = [0]
        first = acting[0] if acting else None
        found = technique.planned(decision.config, n, len(acting), first, counts)
        (by_step if technique.by_step else others).extend(found)
    return parts + by_step + _work(plan) + others


def _work(plan: Plan) -> list[Text]:
    work = plan.work(plan.prediction) if plan.prediction is not None else None
    return [message("about {share:.0f} % of the work", share=100 * work)] if work is not None and work < 0.995 else []


def plan_lines(plans: dict[str, Plan], request: RequestPlan) -> tuple[list[Text], list[Text]]:
    """One line a pass, with what holds for the whole request behind the last; and what is refused or to be said, once
    each."""
    parts = [planned(plan) for plan in plans.values()]
    for technique, decision in request.decisions:
        if decision.config is not None:
            parts[-1] += technique.planned(decision.config)
    named: list[Text] = [joined(part, by="; ") for part in parts]
    if len(plans) > 1:
        named = [joined([name, ": ", line]) for name, line in zip(plans, named, strict=True)]
    notes = [note for plan in plans.values() for note in plan.notes] + list(request.notes)
    return named, [note.sentence for note in dict.fromkeys(notes)]


# --- after: the report


def happened(report: PassReport) -> list[Text]:
    """What ran in a pass, in a few words each."""
    c = report.counts
    parts: list[Text] = [message("{n} calls", n=c.calls), message("{n} of {stock} rows", n=c.rows, stock=c.stock_rows)]
    for technique, _ in report.plan.decisions:
        parts += technique.happened(report)
    if report.extra_calls:
        parts.append(message("{n} calls by others uncached", n=report.extra_calls))
    if report.stopped:
        parts.append("stopped")
    if report.as_predicted is False:
        parts.append("not as planned")
    return parts


def infotext_result(job: JobReport, iteration: int) -> str | None:
    """The infotext of one iteration's pictures, or None before its first pass."""
    passes = job.passes.get(iteration)
    if not passes:
        return None
    texts = [", ".join(map(str, happened(p))) for p in passes]
    if len(passes) > 1:
        texts = [f"{p.name} {text}" for p, text in zip(passes, texts, strict=True)]
    return "; ".join(texts)


def infotext_notes(job: JobReport, iteration: int) -> str | None:
    """The notes of one iteration's pictures, or None where there are none yet."""
    started = iteration in job.passes
    return ("; ".join(map(str, job.all_notes(iteration))) or None) if started else None


def report_lines(job: JobReport) -> list[Text]:
    """The whole request for people: one line a pass, then the notes."""
    lines: list[Text] = []
    for iteration, passes in sorted(job.passes.items()):
        batch: list[Text] = [] if len(job.passes) == 1 else [message("batch {n}", n=iteration + 1), ", "]
        lines += [joined([*batch, p.name, ": ", _pass_line(p)]) for p in passes]
    if job.decoder:
        lines.append(message("decoded by {decoder}", decoder=job.decoder))
    if job.compared:
        lines.append(compared(job.compared))
    for counts in (job.vae, job.memory):
        if counts is not None and (facts := counts.happened()):
            lines.append(joined(facts, by=", "))
    if job.peaks:
        lines.append(_peaks(job))
    return lines + [note.sentence for note in job.all_notes()]


def _pass_line(p: PassReport) -> Text:
    store = [message("store {size:.1f} MiB", size=p.store_bytes / MIB)] if p.store_bytes else []
    facts = joined([*happened(p), *store], by=", ")
    return joined([facts, "; ", *_preparation(p.execution), message("{seconds:.2f} s", seconds=p.seconds)])


def _preparation(done: Executed) -> list[Text]:
    """What getting ready took, and when it is paid back."""
    if not done.prepared:
        return []
    head = message("{backend} prepared {n} kinds of call in ", backend=done.backend, n=done.prepared)
    pays: Text = "does not pay off here"
    if done.break_even:
        pays = message("pays off after {n} like this", n=done.break_even)
    memory = [message("{size:.0f} MiB", size=done.nbytes / MIB)] if done.nbytes else []
    took = message("{seconds:.1f} s", seconds=done.ready_seconds)
    return [head, joined([took, *memory, pays], by=", "), "; "]


def compared(found: Comparison) -> Text:
    text = "{seconds:.2f} s in all; the last stock run of this size took {stock:.2f} s, with {steps} steps of {sampler}"
    steps, sampler = found.stock_steps, found.stock_sampler
    return message(text, seconds=found.seconds, stock=found.stock_seconds, steps=steps, sampler=sampler)


def _peaks(job: JobReport) -> Text:
    each = [
        joined([stage, message(" {a:.2f} ({r:.2f}) GB", a=p.allocated / GB, r=p.reserved / GB)])
        for stage, p in job.peaks.items()
    ]
    set_by = message("set by {stage}", stage=job.peak_stage)
    return joined(["peak memory, allocated (reserved): ", joined(each, by=", "), "; ", set_by])
