"""The report's words, and that they follow what was counted."""

from __future__ import annotations

from host_loop import plan_for

from sdxl_optim.report import JobReport, PassReport
from sdxl_optim.sampling.loop import Counts, Loop
from sdxl_optim.sampling.note import Note
from sdxl_optim.sentences import happened, infotext_notes, infotext_result, report_lines

LOOP = Loop.of_steps([1] * 4)
CACHED = {"deepcache": {"enabled": True, "cache_interval": 2}, "cfg_cutoff": {"enabled": True, "stop": 0.5}}


def finished_pass(name: str = "base", settings: dict = CACHED, cached=(False, True, False, True)) -> PassReport:
    report = PassReport(name, plan_for(settings, LOOP))
    for reused, rows in zip(cached, (2, 2, 1, 1), strict=True):
        report.count_call(2)
        report.count_unet(rows, True, reused)
    report.finished = True
    return report


def test_the_facts_of_a_pass():
    report = finished_pass()
    assert report.counts == Counts(calls=4, full=2, cached=2, rows=6, stock_rows=8)
    assert report.as_predicted is True
    assert happened(report) == ["4 calls", "6 of 8 rows", "2 full and 2 cached"]


def test_what_did_not_happen_is_not_said():
    report = PassReport("base", plan_for(CACHED, LOOP))
    assert happened(report) == ["0 calls", "0 of 0 rows"]
    assert report.as_predicted is None  # it has not finished


def test_another_course_than_planned_is_said():
    report = finished_pass(cached=(False, False, False, True))
    assert report.as_predicted is False
    assert happened(report)[-1] == "not as planned"


def test_a_pass_that_broke_off_or_was_stopped_is_not_held_against_its_plan():
    report = finished_pass(cached=(False, False, False, True))
    report.finished = False
    assert report.as_predicted is None
    assert "not as planned" not in happened(report)
    report.finished = report.stopped = True
    assert report.as_predicted is None
    assert happened(report)[-1] == "stopped"


def test_calls_by_others_are_counted_apart():
    report = finished_pass()
    report.count_unet(2, False, False)
    assert report.counts.rows == 6
    assert report.as_predicted is True
    assert happened(report)[-1] == "1 calls by others uncached"


def test_an_unforeseen_loop_has_no_prediction():
    report = PassReport("base", plan_for({}, Loop(foreseeable=False)))
    report.finished = True
    assert report.as_predicted is None


def test_notes_are_said_once():
    report = PassReport("base", plan_for(CACHED, LOOP, no_cut="why"))
    report.add_note(Note("CFG cutoff", "why"))
    report.add_note(Note("DeepCache", "other"))
    assert [str(note) for note in report.notes if note.refused] == [
        "CFG cutoff refused: why",
        "DeepCache refused: other",
    ]


def test_the_infotext_of_one_pass_and_of_two():
    job = JobReport()
    assert infotext_result(job, 0) is None
    job.add_pass(0, finished_pass())
    assert infotext_result(job, 0) == "4 calls, 6 of 8 rows, 2 full and 2 cached"
    assert infotext_result(job, 1) is None
    job.add_pass(0, finished_pass("hires"))
    assert infotext_result(job, 0) == (
        "base 4 calls, 6 of 8 rows, 2 full and 2 cached; hires 4 calls, 6 of 8 rows, 2 full and 2 cached"
    )


def test_refusals_are_those_of_their_iteration_and_of_the_job():
    job = JobReport()
    for iteration, reason in enumerate(("first", "second")):
        report = PassReport("base", plan_for({}, LOOP))
        report.add_note(Note("FreeU", reason))
        job.add_pass(iteration, report)
    assert infotext_notes(job, 0) == "FreeU refused: first"
    assert infotext_notes(job, 2) is None
    job.add_note(Note("Tiny VAE", "no file"))
    assert infotext_notes(job, 1) == "Tiny VAE refused: no file; FreeU refused: second"
    assert [str(note) for note in job.all_notes()] == [
        "Tiny VAE refused: no file",
        "FreeU refused: first",
        "FreeU refused: second",
    ]


def test_lines_for_people():
    job = JobReport(decoder="Tiny VAE")
    report = finished_pass(settings={**CACHED, "freeu": {"enabled": True}})
    report.seconds, report.store_bytes = 1.234, 3 * 2**19
    report.notes.clear()
    job.add_pass(0, report)
    facts = "4 calls, 6 of 8 rows, 2 full and 2 cached"
    assert report_lines(job) == [f"base: {facts}, store 1.5 MiB; 1.23 s", "decoded by Tiny VAE"]
    job.add_pass(1, finished_pass())
    assert [str(line).split(":")[0] for line in report_lines(job)[:2]] == ["batch 1, base", "batch 2, base"]


def test_the_stage_that_set_the_peak_is_named():
    job = JobReport()
    assert job.peak_stage is None
    for stage, allocated in (("encode", 7), ("denoise", 5), ("decode", 9), ("denoise", 8)):
        job.add_peak(stage, allocated * 10**9, (allocated + 1) * 10**9)
    assert report_lines(job) == [
        "peak memory, allocated (reserved): encode 7.00 (8.00) GB, denoise 8.00 (9.00) GB, decode 9.00 (10.00) GB;"
        " set by decode"
    ]


def test_all_passes_are_those_of_every_iteration():
    job, passes = JobReport(), [finished_pass("base"), finished_pass("hires"), finished_pass("base")]
    for iteration, report in zip((0, 0, 1), passes, strict=True):
        job.add_pass(iteration, report)
    assert job.all_passes == passes
    assert JobReport().all_passes == []
