"""The tab "SDXL Optim": a benchmark started, stopped, killed; results looked at, compared, deleted."""

import json
import time

import numpy as np
import pytest

pytest.importorskip("playwright")

from sdxl_optim.bench.results import Results, listed

from . import browser
from .bench_tab import ID, BenchTab
from .conftest import running
from .plot import results_of
from .test_xyz_report import SMALL


@pytest.fixture(scope="module")
def own():
    """A server of this module's own, which it may kill."""
    yield from running()


@pytest.fixture
def tab(own, open_page):
    return BenchTab(open_page(own, width=1400, height=1600))


def done(results: Results) -> int:
    return len([row for row in results.rows() if row.seconds])


def until(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_a_benchmark_from_start_to_end(own, stock, tab):
    plain = {**SMALL, "negative_prompt": "", "denoising_strength": None}
    expected = {seed: stock.txt2img(**{**plain, "seed": seed, "prompt": text})[0]
                for seed, text in ((5, "a fox"), (6, "a bird"))}  # fmt: skip
    tab.fill_in(runs=2)
    tab.press("start")
    tab.wait_for("status", "left")
    tab.wait_for("status", "Finished: 16 pictures")
    results = results_of(own)[0]
    rows = results.rows()
    assert [row.case for row in rows[::4]] == ["stock", "freeu", "cutoff 0.5", "freeu+deepcache 2+tiny"]
    for row in rows:
        same = np.array_equal(np.asarray(results.picture(row.picture)), expected[row.seed].pixels)
        assert same == row.stock
        assert row.mad is not None
    assert {(row.rows, row.stock_rows) for row in rows if row.case == "cutoff 0.5"} == {(18, 24)}
    assert {(row.full, row.cached, row.decoder) for row in rows[-4:]} == {(6, 6, "TAESD")}
    headings, *lines = tab.table()
    assert headings[:2] == ["Settings", "Pictures"]
    assert [line[:2] for line in lines] == [[row.case, "4"] for row in rows[::4]]
    assert tab.page.locator(f"#{ID}_charts svg circle").count() == 4
    assert tab.page.locator(f"#{ID}_gallery img").count() >= 8
    assert "| stock | 4 |" in tab.markdown()
    link = tab.page.locator(f"#{ID}_about a").first.get_attribute("href")
    assert "<svg" in tab.page.request.get(f"{own.url}/{link}").text()


def test_the_next_plain_generation_is_stock(own, stock):
    plain = own.client.txt2img(**SMALL)[0]
    expected = stock.txt2img(**SMALL)[0]
    assert np.array_equal(plain.pixels, expected.pixels)
    assert plain.infotext == expected.infotext


def test_stopped_at_half_what_is_done_is_kept(own, tab):
    tab.fill_in(steps=30)
    tab.press("start")
    tab.wait_for("status", "4 of 8")
    tab.press("stop")
    tab.wait_for("status", "Stopped")
    results = results_of(own)[0]
    assert 4 <= done(results) < 8
    assert all(results.picture(row.picture) for row in results.rows())
    assert (results.folder / "report.html").is_file()
    assert own.client.txt2img(**SMALL)


def test_wrong_combinations_are_refused_before_anything_is_made(own, tab):
    before = len(results_of(own))
    tab.fill_in(cases="freeu\nnonsense")
    tab.press("start")
    tab.wait_for("status", "combination: 'nonsense' is not allowed")
    assert len(results_of(own)) == before


def test_two_results_compared_and_one_deleted(own, tab):
    a, b = (results.folder.name for results in results_of(own)[:2])
    tab.press("refresh")
    tab.wait_for("about", a)
    browser.choose(tab.page, f"{ID}_other", b)
    tab.press("compare")
    tab.wait_for("about", f"A: {a}, B: {b}")
    assert tab.table()[0][:3] == ["Settings", "A: seconds", "B: seconds"]
    assert "B ÷ A" in tab.markdown()
    tab.press("delete")
    tab.wait_for("status", f"{a} is deleted")
    assert results_of(own)[0].folder.name == b


@pytest.mark.timeout(900)  # "torch.compile" really compiles
def test_the_articles_table_says_what_cannot_run(own, tab):
    browser.choose_radio(tab.page, f"{ID}_what", "The article's table")
    tab.fill_in(prompts="5: a fox", steps=4)
    tab.press("start")
    tab.wait_for("status", "Finished", seconds=800)
    rows = {row.case: row for row in results_of(own)[0].rows()}
    assert len(rows) == 43
    assert rows["OneDiff"].notes == "not run: onediff: needs a CUDA device"
    assert rows["Refiner, 20 steps, from 0.8"].notes == "not run: no refiner checkpoint was chosen"
    ran = {name for name, row in rows.items() if row.seconds}
    assert ran >= {"Stock", "FreeU", "DeepCache", "Tiny VAE", "15 steps", "Model CPU offload", "VAE tiling"}


def test_a_server_killed_in_the_middle_has_lost_no_finished_picture(own, open_page):
    tab = BenchTab(open_page(own))
    before = len(results_of(own))
    tab.fill_in(steps=30)
    tab.press("start")
    until(lambda: len(results_of(own)) == before + 1 and done(results_of(own)[0]) == 3)
    time.sleep(0.3)  # into the next picture
    own.stop()
    killed = listed(own.data / "outputs" / "sdxl-optim")[0]
    name, rows = killed.folder.name, killed.rows()
    assert len(rows) >= 3
    own.log_file.unlink()  # which tells when the server is ready
    own.start()
    tab = BenchTab(open_page(own))
    tab.press("refresh")
    tab.wait_for("about", name)
    tab.wait_for("table", "freeu")
    assert [line[0] for line in tab.table()[1:]][:2] == ["stock", "freeu"]
    after = results_of(own)[0]
    assert [row.key for row in after.rows()] == [row.key for row in rows]
    assert all(after.picture(row.picture) for row in after.rows())
    assert json.loads((after.folder / "results.json").read_text("utf-8"))
