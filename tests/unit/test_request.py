"""The attribute on the host's request: it answers for its owner, and a copy takes over what holds for copies."""

import copy

from sdxl_optim.hosts.webui import request
from sdxl_optim.hosts.webui.active_runs import ActiveRuns


class P:
    """As the host's StableDiffusionProcessing: attributes, and nothing that forbids more."""


def test_one_attribute_for_all():
    p = P()
    request.attach(p).job = "job"
    request.attach(p).measurement = "measurement"
    assert list(vars(p)) == ["sdxl_optim"]
    assert (request.job_of(p), request.measurement_of(p)) == ("job", "measurement")
    assert request.of(p) is request.attach(p)


def test_without_it_there_is_nothing():
    p = P()
    assert request.of(p) is request.job_of(p) is request.measurement_of(p) is None
    assert vars(p) == {}


def test_a_copy_does_not_see_its_parents_work():
    p = P()
    own = request.attach(p)
    own.job, own.stock_clock, own.first_checkpoint = "job", "clock", "checkpoint"
    copied = copy.copy(p)
    assert request.of(copied) is request.job_of(copied) is request.measurement_of(copied) is None
    fresh = request.attach(copied)
    assert fresh is not own
    assert (fresh.job, fresh.stock_clock, fresh.first_checkpoint) == (None, None, None)
    assert request.job_of(p) == "job"


def test_a_copy_keeps_the_plots_values_and_may_change_them():
    p = P()
    request.attach(p).overrides = {("steps",): 3}
    cell = copy.copy(p)
    own = request.attach(cell)
    own.overrides = {**own.overrides, ("enabled",): False}
    inside = copy.copy(cell)
    assert request.attach(inside).overrides == {("steps",): 3, ("enabled",): False}
    assert request.attach(p).overrides == {("steps",): 3}


def test_a_copy_of_a_reference_is_stock_too():
    p = P()
    request.attach(p).is_reference = True
    assert request.attach(copy.copy(p)).is_reference


def test_copies_of_what_is_measured_are_not_measured_by_themselves():
    p = P()
    request.attach(p).measurement = "measurement"
    inside = copy.copy(p)
    assert request.attach(inside).measurement is None
    assert request.attach(inside).inside_measured
    assert request.attach(copy.copy(inside)).inside_measured
    assert not request.attach(p).inside_measured


# --- the runs at work


class Denoiser:
    def __init__(self, sampler):
        self.sampler = sampler


class Run:
    def __init__(self):
        self.log = []

    def foreign_call_begins(self):
        self.log.append("foreign call")

    def suspend(self):
        self.log.append("suspend")

    def resume(self):
        self.log.append("resume")


def test_a_call_finds_its_run_and_asking_changes_nothing():
    runs, outer, inner = ActiveRuns(), Run(), Run()
    assert not runs
    with runs.sampling("outer's sampler", outer), runs.sampling("inner's sampler", inner):
        assert runs.run_of(Denoiser("outer's sampler")) is outer
        assert runs.run_of(Denoiser("inner's sampler")) is inner
        assert runs.run_of(Denoiser("another")) is runs.run_of(object()) is None
        assert outer.log == inner.log == []
        runs.foreign_call_begins()
        assert (outer.log, inner.log) == ([], ["foreign call"])
    assert not runs


def test_all_are_suspended_for_a_loop_inside_theirs():
    runs, run = ActiveRuns(), Run()
    with runs.sampling("sampler", run):
        with runs.suspended():
            assert run.log == ["suspend"]
        assert run.log == ["suspend", "resume"]
