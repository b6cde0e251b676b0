"""A request's report as plain data, for --json."""

from __future__ import annotations

from dataclasses import asdict

from sdxl_optim.report import JobReport, PassReport


def describe(report: JobReport) -> dict:
    """What was planned, and what happened."""
    return {
        "plan": [_planned(p) for p in report.all_passes],
        "report": {
            "passes": [_happened(p) for p in report.all_passes],
            "decoder": report.decoder,
            "notes": [asdict(note) for note in report.all_notes()],
            "lines": report.lines(),
        },
    }


def _planned(p: PassReport) -> dict:
    steps = p.plan.steps
    return {
        "name": p.name,
        "steps": len(steps),
        "full": [i for i, s in enumerate(steps) if not s.cached],
        "cut_from": next((i for i, s in enumerate(steps) if s.cut), None),
        "freeu": [i for i, s in enumerate(steps) if s.freeu],
        "prediction": asdict(p.plan.prediction) if p.plan.prediction else None,
    }


def _happened(p: PassReport) -> dict:
    return {
        "name": p.name,
        **asdict(p.counts),
        "freeu_calls": p.freeu_calls,
        "store_bytes": p.store_bytes,
        "seconds": p.seconds,
        "finished": p.finished,
        "as_predicted": p.as_predicted,
    }
