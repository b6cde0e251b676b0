"""A request's report as plain data, for --json."""

from __future__ import annotations

from dataclasses import asdict

from sdxl_optim.report import JobReport, PassReport
from sdxl_optim.sampling.note import Note
from sdxl_optim.sentences import report_lines


def describe(report: JobReport) -> dict:
    """What was planned, and what happened."""
    return {
        "plan": [_planned(p) for p in report.all_passes],
        "report": {
            "passes": [_happened(p) for p in report.all_passes],
            "decoder": report.decoder,
            "notes": [_note(note) for note in report.all_notes()],
            "lines": [*map(str, report_lines(report))],
        },
    }


def _note(note: Note) -> dict:
    return {"feature": str(note.feature), "text": str(note.text), "refused": note.refused}


def _planned(p: PassReport) -> dict:
    steps = p.plan.steps
    return {
        "name": p.name,
        "steps": len(steps),
        "full": [i for i, s in enumerate(steps) if "deepcache" not in s],
        "cut_from": p.plan.cut_from,
        "freeu": [i for i, s in enumerate(steps) if "freeu" in s],
        "prediction": asdict(p.plan.prediction) if p.plan.prediction else None,
    }


def _happened(p: PassReport) -> dict:
    return {
        "name": p.name,
        **asdict(p.counts),
        **{name: value for technique, _ in p.plan.decisions for name, value in technique.measured(p).items()},
        "seconds": p.seconds,
        "finished": p.finished,
        "as_predicted": p.as_predicted,
    }
