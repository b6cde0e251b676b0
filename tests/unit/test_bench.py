"""The benchmark's runner, its cases and its command line, over a host that paints in no time."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from PIL import Image

from sdxl_optim.bench.article import article_cases
from sdxl_optim.bench.cases import ARTICLE_PROMPTS, Case, Prompt, combination
from sdxl_optim.bench.compare import comparison, comparison_text
from sdxl_optim.bench.reading import article_rows, as_text, cases_of, prompts_of
from sdxl_optim.bench.report import summary, table_of
from sdxl_optim.bench.results import Results, Row
from sdxl_optim.bench.runner import Progress, Runner, Stopped
from sdxl_optim.cli.prompts import read_prompts
from sdxl_optim.errors import SettingsError

PROMPTS = [Prompt("p", "a fox", 1), Prompt("q", "a bird", 2)]
CASES = [Case("Stock"), combination("freeu"), combination("onediff", "OneDiff"), combination("cutoff 0.5")]


class Painter:
    """A host. `stop_at`: the picture in the middle of which it is stopped."""

    def __init__(self, stop_at: int = 10**6, fail_at: int = 10**6):
        self.made: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.stop_at, self.fail_at = stop_at, fail_at

    def why_not(self, case):
        return "the package onediff is not installed" if case.settings.backend.name == "onediff" else ""

    @contextlib.contextmanager
    def opened(self, case):
        self.open.append(case.name)
        try:
            yield
        finally:
            self.open.remove(case.name)

    def make(self, case, prompt):
        assert self.open == [case.name]
        if len(self.made) == self.stop_at:
            raise Stopped
        if len(self.made) == self.fail_at:
            raise MemoryError
        self.made.append((case.name, prompt.name))
        pixels = np.random.default_rng(prompt.seed).integers(0, 200, (32, 32, 3), dtype=np.uint8)
        pixels += np.uint8(0 if case.stock else 9)
        return Image.fromarray(pixels), Row(seconds=float(len(self.made)), seed=prompt.seed), "Steps: 1"


class Stages(Painter):
    """Makes all pictures of a run together."""

    def make_together(self, case, prompts):
        return [super(Stages, self).make(case, prompt) for prompt in prompts]


@pytest.fixture
def results(tmp_path):
    return Results.create(tmp_path, "bench")


def test_all_cases_prompts_and_runs(results):
    host, seen = Painter(), []
    Runner(host, results, CASES, PROMPTS, runs=2, warm_up=1).run(seen.append)
    rows = results.rows()
    assert len(host.made) == 3 * (2 * 2 + 1)
    assert [(r.case, r.prompt, r.run) for r in rows[:4]] == [("Stock", p, run) for p in "pq" for run in (1, 2)]
    assert [r.case for r in rows[4:9]] == ["freeu"] * 4 + ["OneDiff"]
    assert rows[8].notes == "not run: the package onediff is not installed"
    assert {r.first_seconds for r in rows if r.case == "freeu"} == {6.0}
    assert all(r.mad == (0 if r.stock else 9) for r in rows if r.seconds)
    assert seen[-1].done == seen[-1].total == 15
    assert seen[0] == Progress(0, 15, "Stock: warm-up", None)
    assert all(p.seconds_left >= 0 for p in seen[2:])


def test_prompt_by_prompt_a_busy_machine_slows_all_cases_alike(results):
    host, seen = Painter(), []
    Runner(host, results, CASES, PROMPTS, warm_up=1, by_prompt=True).run(seen.append)
    runs = [("Stock", "p")] * 2 + [("freeu", "p")] * 2 + [("cutoff 0.5", "p")] * 2
    assert host.made == runs + [(case, "q") for case in ("Stock", "freeu", "cutoff 0.5")]
    rows = results.rows()
    assert [(r.case, r.prompt, r.first_seconds) for r in rows] == [
        *(("Stock", p, 1.0) for p in "pq"),
        *(("freeu", p, 3.0) for p in "pq"),
        ("OneDiff", "", None),  # said once
        *(("cutoff 0.5", p, 5.0) for p in "pq"),
    ]
    assert all(r.mad == (0 if r.stock else 9) for r in rows if r.seconds)
    assert seen[-1].done == seen[-1].total == 9


@pytest.mark.parametrize("stop_at", [0, 1, 3, 5])
def test_what_is_done_is_kept_and_not_made_again(results, stop_at):
    Runner(Painter(stop_at=stop_at), results, CASES, PROMPTS).run()
    assert len([r for r in results.rows() if r.seconds]) == stop_at
    assert (results.folder / "report.html").is_file()
    host = Painter()
    Runner(host, results, CASES, PROMPTS).run()
    assert len(host.made) == 6 - stop_at
    rows = results.rows()
    assert [(r.case, r.prompt) for r in rows] == [
        *((case, p) for case in ("Stock", "freeu") for p in "pq"),
        ("OneDiff", ""),
        *(("cutoff 0.5", p) for p in "pq"),
    ]
    assert all(r.mad is not None for r in rows if r.seconds)


def test_stop_ends_before_the_next_picture(results):
    runner = Runner(Painter(), results, CASES, PROMPTS)
    runner.run(lambda progress: runner.stop() if progress.done == 2 else None)
    assert len(results.rows()) == 2


def test_an_error_keeps_what_is_done(results):
    with pytest.raises(MemoryError):
        Runner(Painter(fail_at=3), results, CASES, PROMPTS).run()
    assert len([r for r in results.rows() if r.seconds]) == 3
    assert (results.folder / "report.html").is_file()


def test_a_case_that_fails_is_noted_and_the_next_is_run(results, monkeypatch):
    host = Painter()
    make = host.make

    def failing(case, prompt):
        if case.name == "freeu":
            raise RuntimeError("CUDA out of memory.\nMany more words")
        return make(case, prompt)

    monkeypatch.setattr(host, "make", failing)
    Runner(host, results, CASES, PROMPTS).run()
    assert [(r.case, r.notes) for r in results.rows()][2:4] == [
        ("freeu", "failed: CUDA out of memory."),
        ("OneDiff", "not run: the package onediff is not installed"),
    ]
    assert len(host.made) == 4


def test_a_part_of_the_cases_leaves_the_others_rows_and_the_order(results):
    order = [case.name for case in CASES]
    Runner(Painter(), results, CASES[2:], PROMPTS, order=order).run()
    host = Painter()
    runner = Runner(host, results, CASES[:2], PROMPTS, order=order)
    runner.run()
    rows = results.rows()
    assert host.made == [(case, p) for case in ("Stock", "freeu") for p in "pq"]
    assert list(dict.fromkeys(r.case for r in rows)) == order
    assert [r.notes for r in rows if r.case == "OneDiff"] == ["not run: the package onediff is not installed"]
    assert all(r.mad is not None for r in rows if r.seconds)  # also of those that came before their stock picture
    assert runner.left() == 0


def test_rows_without_their_pictures_go_on_elsewhere(results):
    Runner(Painter(), results, CASES[:1], PROMPTS).run()
    for picture in (results.folder / "pictures").iterdir():
        picture.unlink()
    runner = Runner(Painter(stop_at=1), results, CASES[:2], PROMPTS)
    runner.run()
    rows = results.rows()
    assert [(r.case, r.picture, r.mad) for r in rows] == [
        ("Stock", "0001.png", 0),
        ("Stock", "0002.png", 0),
        ("freeu", "0003.png", None),
    ]
    assert runner.left() == 1


def test_pictures_made_together(results):
    case, host, seen = combination("staged", "Batch processing", together=True), Stages(), []
    runner = Runner(host, results, [Case("Stock"), case], PROMPTS, runs=2, warm_up=1)
    runner.run(lambda progress: seen.append(progress) or (runner.stop() if progress.done == 9 else None))
    together = [name for name, _ in host.made].count(case.name)
    assert (together, seen[-1].done, seen[-1].total) == (4, 9, 11)  # the warm-up's and the first run's
    Runner(host, results, [Case("Stock"), case], PROMPTS, runs=2).run()
    assert [(r.prompt, r.run) for r in results.rows() if r.case == case.name] == [
        (p, run) for run in (1, 2) for p in "pq"
    ]


def test_two_cases_of_one_name_are_refused(results):
    with pytest.raises(ValueError, match="used twice"):
        Runner(Painter(), results, [Case("a"), Case("a", steps=3)], PROMPTS).run()


def test_the_articles_rows():
    cases = {case.name: case for case in article_cases()}
    assert len(cases) == len(article_cases()) == 43
    assert [c.name for c in cases.values() if c.stock] == ["Stock"]
    assert cases["DeepCache"].settings.deepcache.cache_interval == 3
    assert cases["CFG off at 50 %"].settings.cfg_cutoff.stop == 0.5
    assert cases["Tiny VAE"].settings.vae.decoder == "tiny"
    assert cases["torch.compile"].settings.backend.name == "inductor"
    assert cases["TF32"].settings.memory.matmul_tf32 == "on"
    assert [c.name for c in cases.values() if c.together] == ["Batch processing"]
    assert sum(case.refines for case in cases.values()) == 16
    assert cases["Refiner, 40 steps, from 0.9"] == Case("Refiner, 40 steps, from 0.9", steps=40, switch_at=0.9)


def test_the_articles_rows_by_name():
    text = "CFG off at 75 %, refiner, 40 steps, from 0.9,Tiny VAE + CFG off at 75 % + 30 steps , Tiny VAE,"
    assert [case.name for case in article_rows(text)] == [
        "Stock",
        "Tiny VAE",
        "CFG off at 75 %",
        "Refiner, 40 steps, from 0.9",
        "Tiny VAE + CFG off at 75 % + 30 steps",
    ]
    assert [case.name for case in article_rows(", ".join(c.name for c in article_cases()))] == [
        case.name for case in article_cases()
    ]
    with pytest.raises(SettingsError, match=r"--rows: 'Tiny' is not allowed; allowed: names .*: Stock \| FP32 \| "):
        article_rows("Stock, Tiny, DeepCache")


def test_cases_by_name():
    names = [case.name for case in cases_of("freeu, cutoff 0.5+tiny\nfreeu, stock")]
    assert names == ["stock", "freeu", "cutoff 0.5+tiny"]
    with pytest.raises(SettingsError, match="combination: 'nonsense' is not allowed"):
        cases_of("freeu, nonsense")


def test_prompts_with_and_without_seeds():
    assert prompts_of("12: a fox\n\n a: bird \n 7:\na fox") == [
        Prompt("a fox", "a fox", 12),
        Prompt("a: bird", "a: bird", 2),
        Prompt("7:", "7:", 3),
    ]
    assert prompts_of(as_text(ARTICLE_PROMPTS)) == list(ARTICLE_PROMPTS)
    two = [Prompt("a fox", "a fox", 1), Prompt("a fox (2)", "a fox", 2), Prompt("²: foo", "²: foo", 4)]
    assert prompts_of("1: a fox\n2: a fox\n1: a fox\n²: foo") == two


def test_a_file_of_prompts_with_a_mark_in_front(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("12: a fox", "utf-8-sig")
    assert read_prompts(path) == [Prompt("a fox", "a fox", 12)]


def test_two_results_side_by_side(results, tmp_path):
    other = Results.create(tmp_path, "bench")
    Runner(Painter(), results, CASES[:2], PROMPTS).run()
    Runner(Painter(), other, [CASES[0], CASES[3]], PROMPTS).run()
    headings, cells = comparison(results, other)
    assert [line[0] for line in cells] == ["Stock", "freeu", "cutoff 0.5"]
    stock, freeu, cutoff = (dict(zip(headings, line, strict=True)) for line in cells)
    assert (stock["A: seconds"], stock["B: seconds"], stock["B ÷ A"]) == ("1.50", "1.50", "1.00")
    assert (freeu["B: seconds"], cutoff["A: seconds"], cutoff["B ÷ A"]) == ("–", "–", "–")
    assert "| Stock |" in comparison_text(results, other)


def test_speed_is_against_the_stock_row(results):
    Runner(Painter(), results, CASES[:2], PROMPTS).run()
    headings, cells = table_of(summary(results.rows()))
    assert [line[headings.index("Speed")] for line in cells] == ["1.00×", "0.43×"]
