"""An X/Y/Z plot of ours by API: legends, rows that agree with the infotexts, stock cells that are stock, the report."""

import csv
import json
import time

import numpy as np
import pytest
from PIL import Image

from sdxl_optim.bench.report import FILES
from sdxl_optim.bench.results import from_dict

from .client import same
from .live import reported
from .plot import PREFIX, in_order, plot, results_of, row_of

X = (f"{PREFIX}DeepCache interval", "off, 2, 4")
Y = (f"{PREFIX}CFG cutoff stop", "off, 0.5, 0.75")
Z = (f"{PREFIX}FreeU", "off, on")
SIZE = {"width": 128, "height": 128, "steps": 12}
SMALL = {**SIZE, "seed": 5, "prompt": "a fox", "sampler_name": "Euler", "cfg_scale": 5}
PLAIN = {**SMALL, "negative_prompt": "", "denoising_strength": None}  # the same request, from the usual client


@pytest.fixture(scope="module")
def eighteen(webui, stock_webui):
    before = webui.client.get("/sdapi/v1/options"), (webui.data / "config.json").read_text()
    made = plot(webui.client, X, Y, Z, **SMALL)
    after = webui.client.get("/sdapi/v1/options"), (webui.data / "config.json").read_text()
    assert before == after
    return made, results_of(webui)[0]


def test_eighteen_rows_agree_with_the_cells_infotexts(eighteen):
    made, results = eighteen
    rows = results.rows()
    assert len(rows) == len(made.cells) == 18
    for axes, cell in zip(in_order(X, Y, Z), made.cells, strict=True):
        row = row_of(rows, axes)
        assert np.array_equal(np.asarray(results.picture(row.picture)), cell.pixels)
        with Image.open(results.folder / "pictures" / row.picture) as saved:
            assert saved.info["parameters"] == cell.infotext
        assert (row.stock, row.calls, row.stock_rows) == (set(axes.values()) == {"off"}, 12, 24)
        if not row.stock:
            facts = reported(cell)[0]
            assert (str(row.rows), row.seed, row.steps) == (facts["rows"], 5, 12)
            assert (row.full, row.cached) == (int(facts["full"] or 12), int(facts["cached"] or 0))
        assert row.seconds > row.sampling_seconds > 0 < row.decode_seconds


def test_off_cells_are_stock_in_every_pixel_and_in_their_infotext(eighteen, stock):
    made, _ = eighteen
    assert same(made.cells[0], stock.txt2img(**PLAIN)[0])


def test_the_next_plain_generation_is_stock(eighteen, webui, stock):
    assert same(webui.client.txt2img(**SMALL)[0], stock.txt2img(**SMALL)[0])


def test_numbers_are_scikit_images_on_the_saved_pngs(eighteen):
    metrics = pytest.importorskip("skimage.metrics")
    _, results = eighteen
    stock = next(row for row in results.rows() if row.stock)
    folder = results.folder / "pictures"
    reference = np.asarray(Image.open(folder / stock.picture))
    for row in results.rows():
        picture = np.asarray(Image.open(folder / row.picture))
        assert row.reference == stock.picture
        ssim = metrics.structural_similarity(reference, picture, channel_axis=2, data_range=255)
        assert row.ssim == pytest.approx(ssim, abs=1e-4)
        if not row.stock:
            psnr = metrics.peak_signal_noise_ratio(reference, picture, data_range=255)
            assert row.psnr == pytest.approx(psnr, abs=1e-4)


def test_the_files_beside_the_rows(eighteen):
    _, results = eighteen
    assert all((results.folder / name).stat().st_size for name in FILES)
    plain = json.loads((results.folder / "results.json").read_text("utf-8"))
    assert [from_dict(data) for data in plain] == results.rows()
    with (results.folder / "results.csv").open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    for data, line in zip(plain, lines, strict=True):
        cells = {name: "" if value is None else str(value) for name, value in data.items()}
        assert line == {**cells, "axes": json.dumps(data["axes"], ensure_ascii=False)}
    page = (results.folder / "report.html").read_text("utf-8")
    assert page.count('src="data:image/jpeg') == 18
    assert "://" not in page.replace("http://www.w3.org/2000/svg", "")


def test_numbers_are_on_the_plot_and_not_on_the_cells(eighteen, webui):
    made, _ = eighteen
    webui.client.options(sdxl_optim_grid_numbers=False)
    try:
        plain = plot(webui.client, X, Y, Z, **SMALL)
    finally:
        webui.client.options(sdxl_optim_grid_numbers=True)
    assert plain.grid.shape == made.grid.shape
    assert all(same(one, other) for one, other in zip(plain.cells, made.cells, strict=True))
    different = (plain.grid != made.grid).any(axis=2)
    assert 0.02 < different.mean() < 0.3
    assert plain.infotext == made.infotext


def test_without_measuring_nothing_is_written(webui):
    webui.client.options(sdxl_optim_grid_report=False)
    before = len(results_of(webui))
    try:
        plot(webui.client, X, **SMALL)
    finally:
        webui.client.options(sdxl_optim_grid_report=True)
    assert len(results_of(webui)) == before


def test_plots_of_others_are_left_alone(webui):
    before = len(results_of(webui))
    plot(webui.client, ("Steps", "4, 5"), **SMALL)
    assert len(results_of(webui)) == before


def test_the_stock_picture_is_made_where_the_plot_has_none(webui, stock):
    made = plot(webui.client, (f"{PREFIX}FreeU b1", "1.1, 1.3"), ("Steps", "6, 8"), **SMALL)
    rows = results_of(webui)[0].rows()
    assert len(made.cells) == 4
    assert [row.group for row in rows if row.stock] == ["Steps: 6", "Steps: 8"]
    assert all(row.mad is not None for row in rows)
    for row in rows:
        if row.stock:
            expected = stock.txt2img(**{**PLAIN, "steps": row.steps})[0].pixels
            assert np.array_equal(np.asarray(results_of(webui)[0].picture(row.picture)), expected)


def test_and_not_where_the_user_does_not_want_it(webui):
    webui.client.options(sdxl_optim_grid_reference=False)
    try:
        plot(webui.client, (f"{PREFIX}FreeU b1", "1.1, 1.3"), **SMALL)
    finally:
        webui.client.options(sdxl_optim_grid_reference=True)
    results = results_of(webui)[0]
    assert [(row.stock, row.mad) for row in results.rows()] == [(False, None)] * 2
    assert "Nothing was compared" in (results.folder / "report.html").read_text("utf-8")


def test_a_combination_axis(webui):
    axis = (f"{PREFIX}combination", "stock, freeu+cutoff 0.5+deepcache 3, tiny")
    plot(webui.client, axis, **SMALL)
    rows = results_of(webui)[0].rows()
    assert [row.case for row in rows] == ["stock", "combination freeu+cutoff 0.5+deepcache 3", "combination tiny"]
    assert [row.decoder for row in rows] == ["Full", "Full", "TAESD"]


LARGE = {**SMALL, "width": 256, "height": 256, "steps": 50}


def test_the_cells_seconds_add_up_to_the_requests(webui):
    plot(webui.client, X, **SMALL)  # what is loaded once is loaded
    made = plot(webui.client, X, **LARGE)
    total = sum(row.seconds for row in results_of(webui)[0].rows())
    assert total == pytest.approx(made.seconds, rel=0.05)


def test_a_slow_step_shows_in_its_cell_alone(webui, client):
    plot(client, X, **SMALL)
    usual = results_of(webui)[0].rows()
    client.fault("unet", kind="sleep", after=12 + 5, seconds=6.0)
    began = time.perf_counter()
    plot(client, X, **SMALL)
    assert time.perf_counter() - began > 6
    slowed = results_of(webui)[0].rows()
    more = [s.seconds - u.seconds for s, u in zip(slowed, usual, strict=True)]
    assert more[1] == pytest.approx(6, abs=2)
    assert max(abs(more[0]), abs(more[2])) < 2


def test_a_failed_cell_has_no_row_and_the_others_do(webui, client):
    client.fault("unet", after=12 + 5)
    plot(client, X, **SMALL)
    rows = results_of(webui)[0].rows()
    assert [row.case for row in rows] == ["stock", "DeepCache interval 4"]
