"""Rows survive being written, torn and read; quality numbers are scikit-image's; the report shows them."""

import csv
import dataclasses
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sdxl_optim.bench import quality
from sdxl_optim.bench.charts import Point, Scatter, pareto_front
from sdxl_optim.bench.report import FILES, summary, table_of, write_report
from sdxl_optim.bench.results import (
    COLUMNS,
    ROWS,
    Results,
    Row,
    from_dict,
    listed,
    to_dict,
    write_csv,
    write_json,
)

FULL = Row("a, b|c", axes={"X": "1, 2"}, group="g", stock=True, prompt="ü", seconds=1.5, seed=2**40, psnr=math.inf)


def picture(seed=0, noise=0.0, size=(48, 32)):
    rng = np.random.default_rng(seed)
    smooth = np.linspace(0, 200, size[0] * size[1] * 3).reshape(size[1], size[0], 3)
    return Image.fromarray(np.clip(smooth + rng.normal(0, noise, smooth.shape), 0, 255).astype(np.uint8))


@pytest.fixture
def results(tmp_path):
    return Results.create(tmp_path, "test", title="A title & more")


def test_rows_are_read_as_they_were_written(results, tmp_path):
    rows = [FULL, Row("b", cfg=1.0, calls=0)]
    for row in rows:
        results.append(row)
    assert results.rows() == rows
    write_csv(rows, tmp_path / "a.csv")
    write_json(rows, tmp_path / "a.json")
    plain = json.loads((tmp_path / "a.json").read_text("utf-8"))
    assert plain[0]["psnr"] == "inf"
    assert [from_dict(data) for data in plain] == rows
    with (tmp_path / "a.csv").open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    for data, line in zip(plain, lines, strict=True):
        cells = {name: "" if value is None else str(value) for name, value in data.items()}
        assert line == {**cells, "axes": json.dumps(data["axes"], ensure_ascii=False)}


def test_a_torn_line_is_left_out_and_does_not_spoil_the_next(results):
    results.append(Row("a"))
    with (results.folder / ROWS).open("a") as file:
        file.write('{"case": "to')
    assert results.rows() == [Row("a")]
    results.append(Row("b"))
    assert results.rows() == [Row("a"), Row("b")]


def test_a_prompt_with_ends_of_lines_that_json_leaves_as_they_are(results):
    rows = [Row("a", prompt="a fox\u2028in snow\u0085at dusk\u2029"), Row("b")]
    for row in rows:
        results.append(row)
    assert results.rows() == rows


def test_a_row_of_a_newer_version_is_read():
    assert from_dict({**to_dict(FULL), "new": 1}) == FULL


def test_every_column_is_documented():
    assert all(f.metadata["doc"] for f in dataclasses.fields(Row))
    assert COLUMNS[:2] == ("case", "axes")


def test_pictures_keep_every_pixel_and_their_infotext(results):
    image = picture(noise=20)
    row = results.append(Row("a"), image, "Steps: 3, ü")
    assert np.array_equal(np.asarray(results.picture(row.picture)), np.asarray(image))
    with Image.open(results.folder / "pictures" / row.picture) as saved:
        assert saved.info["parameters"] == "Steps: 3, ü"
    assert results.append(Row("b"), image).picture != row.picture


def test_results_are_listed_newest_first_and_deleted(tmp_path):
    made = [Results.create(tmp_path, "x") for _ in range(3)]
    assert len({r.folder for r in made}) == 3
    assert {r.folder for r in listed(tmp_path)} == {r.folder for r in made}
    made[0].delete()
    assert len(listed(tmp_path)) == 2
    with pytest.raises(ValueError, match="holds no result"):
        Results(tmp_path).delete()


def test_a_result_takes_the_place_of_one_of_its_kind_alone(tmp_path):
    folder = tmp_path / "out"
    first = Results.restarted(folder, "demo", title="one")
    (folder / "pictures").mkdir()
    (folder / "pictures" / "mine.png").write_bytes(b"mine")
    first.append(Row("a", seconds=1.0), picture())
    second = Results.restarted(folder, "demo", title="two")
    assert second.rows() == []
    assert second.about()["title"] == "two"
    assert [file.name for file in (folder / "pictures").iterdir()] == ["mine.png"]
    with pytest.raises(ValueError, match="holds another result"):
        Results.restarted(folder, "bench")
    assert second.about()["kind"] == "demo"


@pytest.mark.parametrize("noise", [0.3, 5, 60])
def test_quality_is_scikit_images(results, noise):
    metrics = pytest.importorskip("skimage.metrics")
    stock = results.append(Row("stock", stock=True), picture())
    other = results.append(Row("other"), picture(1, noise))
    row = quality.compare_all(results)[1]
    a, b = (np.asarray(Image.open(results.folder / "pictures" / r.picture)) for r in (stock, other))
    assert row.reference == stock.picture
    assert row.psnr == pytest.approx(metrics.peak_signal_noise_ratio(a, b, data_range=255), abs=1e-4)
    assert row.ssim == pytest.approx(metrics.structural_similarity(a, b, channel_axis=2, data_range=255), abs=1e-4)
    assert row.mad == pytest.approx(np.abs(a.astype(float) - b).mean(), abs=1e-9)


def test_equal_pictures():
    assert quality.psnr(picture(), picture()) == math.inf
    assert quality.mad(picture(), picture()) == 0


def test_similarity_is_one_for_equal_pictures_alone():
    pytest.importorskip("skimage")
    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    assert quality.similarity(picture, picture) == pytest.approx(1)
    assert quality.similarity(picture, 255 - picture) < 0.5


def test_each_group_has_its_own_reference(results):
    for group in "ab":
        results.append(Row("off", group=group, stock=True), picture(noise=ord(group)))
        results.append(Row("on", group=group), picture(noise=ord(group)))
    results.append(Row("alone", group="c"), picture())
    rows = quality.compare_all(results)
    assert [r.reference for r in rows] == ["0001.png", "0001.png", "0003.png", "0003.png", ""]
    assert rows[4].mad is None


def test_another_size_is_noted(results):
    results.append(Row("off", stock=True), picture())
    results.append(Row("on"), picture(size=(32, 32)))
    results.replace(quality.compare_all(results))
    row = quality.compare_all(results)[1]
    assert row.ssim is None
    assert row.notes == quality.OTHER_SIZE


def test_the_summary_is_the_mean_over_prompts_and_runs():
    rows = [
        Row("a", prompt="p", group="p", run=1, seconds=1.0, allocated_bytes=5, stock=True),
        Row("a", prompt="q", group="q", run=1, seconds=3.0, allocated_bytes=9, stock=True),
        Row("b", prompt="p", group="p", run=1, seconds=1.0),
        Row("c", notes="can't run"),
    ]
    a, b, c = summary(rows)
    assert (a.seconds, a.allocated_bytes, a.runs) == (2.0, 9, 2)
    assert (b.seconds, b.runs) == (1.0, 1)
    assert c == rows[3]


def test_a_single_row_loses_its_prompt_too():
    stock, other = summary([Row("s", group="p", prompt="p", stock=True, seconds=2.0), Row("a", group="p", prompt="p")])
    assert (stock.group, other.group) == ("", "")


def test_a_grids_stock_pictures_stay_with_their_groups():
    rows = [Row("stock", group=g, prompt="p", stock=True) for g in ("Steps: 6", "Steps: 8")]
    assert summary(rows) == rows


def test_a_grids_cells_are_not_averaged():
    rows = [Row("a", axes={"X": "1"}, group=g) for g in "pq"]
    assert summary(rows) == rows


def test_the_report_is_one_page_of_its_own(results):
    results.append(Row("off & <on>", stock=True, seconds=2.0, device="CPU"), picture())
    results.append(Row("fast", seconds=1.0, full=3, cached=6, rows=12, stock_rows=18), picture(1, 9))
    write_report(results)
    assert all((results.folder / name).is_file() for name in FILES)
    page = (results.folder / "report.html").read_text("utf-8")
    assert page.count('src="data:image/') == 2
    assert not [word for word in ('src="http', "href=", "@import", "url(") if word in page]
    assert "off &amp; &lt;on&gt;" in page
    assert "<svg" in page
    assert "2.00×" in page
    assert "A title &amp; more" in page
    assert "| fast |" in (results.folder / "table.md").read_text("utf-8")
    assert results.rows()[1].mad > 0


@pytest.mark.parametrize("held", FILES)
def test_a_file_that_another_program_holds(results, held, caplog):
    """A folder in its place is as little to be written to as what a spreadsheet has open on Windows."""
    results.append(Row("off", stock=True, seconds=2.0), picture())
    (results.folder / held).mkdir()
    assert len(write_report(results)) == 1
    assert held in caplog.text
    assert all((results.folder / name).is_file() for name in FILES if name != held)


def test_what_is_missing_is_said(results, monkeypatch):
    monkeypatch.setattr(quality, "similarity", lambda a, b: None)
    results.append(Row("off", stock=True, seconds=1.0), picture())
    write_report(results)
    page = (results.folder / "report.html").read_text("utf-8")
    assert "SSIM is missing" in page
    assert "Peak memory is missing" in page


def test_memory_has_a_chart_and_columns_where_it_was_measured(results):
    results.append(Row("off", stock=True, seconds=2.0, allocated_bytes=2**30, reserved_bytes=2**31), picture())
    results.append(Row("on", seconds=1.0, allocated_bytes=2**29, reserved_bytes=2**31), picture(1, 9))
    write_report(results)
    page = (results.folder / "report.html").read_text("utf-8")
    assert "Time and memory" in page
    assert page.count("<circle") == 4
    assert "<title>off: 2, 1.02e+03</title>" in page
    assert "Peak memory is missing" not in page
    headings, cells = table_of(results.rows())
    assert [line[headings.index("Allocated MiB")] for line in cells] == ["1024", "512"]
    assert [line[headings.index("Reserved MiB")] for line in cells] == ["2048", "2048"]


def test_empty_columns_are_left_out():
    headings, cells = table_of([Row("a", seconds=1.0), Row("b")])
    assert headings == ["Settings", "Seconds"]
    assert cells == [["a", "1.00"], ["b", "–"]]


def test_the_pareto_front():
    points = [Point("slow good", 3, 0.9), Point("fast bad", 1, 0.2), Point("slow bad", 3, 0.1), Point("mid", 2, 0.8)]
    assert [p.name for p in pareto_front(points)] == ["fast bad", "mid", "slow good"]


@pytest.mark.parametrize("values", [[(1, 1)], [(1, 0.5), (1, 0.5)], [(0.001, -3), (5e6, 1e-9)]])
def test_charts_of_odd_numbers(values):
    svg = Scatter("t", "x", "y", [Point(str(k), x, y) for k, (x, y) in enumerate(values)], front=True).svg()
    assert svg.count("<circle") == len(values)
    assert "nan" not in svg


def test_a_chart_stands_in_any_page():
    points = [Point("fast", 1, 0.2), Point("a & <b> {{ 1 }}", 2, 0.8), Point("slow", 3, 0.1), Point("n" * 40, 1.5, 0.9)]
    chart = Scatter("t", "x & y", "y", points, front=True)
    svg = chart.svg()
    assert svg.startswith("<svg ")
    assert not re.search(r"<style| id=|href=|url\(", svg)  # nothing that reaches the rest of the page, or is fetched
    colours = set(re.findall(r'(?:fill|stroke)="([^"]*)"', svg))
    assert colours == {"none", "currentColor", "#3b7dd8", "#d9622b"}  # so it can be read on light and dark
    assert "<title>a &amp; &lt;b&gt; {{ 1 }}: 2, 0.8</title>" in svg
    assert ">a &amp; &lt;b&gt; {{ 1 }}</text>" in svg
    assert ">x &amp; y</text>" in svg
    assert f">{'n' * 33}…</text>" in svg
    assert "background:white;color:black" in chart.svg("white", "black")


def test_points_lie_by_the_ticks():
    svg = Scatter("t", "x", "y", [Point("a", 0, 0), Point("b", 10, 100)]).svg()
    places = {
        text: (float(x), float(y)) for x, y, text in re.findall(r'<text x="(.*?)" y="(.*?)".*?>([\d.]+)</text>', svg)
    }
    circles = [(float(x), float(y)) for x, y in re.findall(r'<circle cx="(.*?)" cy="(.*?)"', svg)]
    assert circles[1] == (places["10"][0], places["100"][1] - 4)  # a text stands on its line
    assert circles[0][0] < circles[1][0]
    assert circles[0][1] > circles[1][1]


def test_a_name_that_would_cover_another_is_left_out():
    points = [Point("first", 1, 1), Point("beside it", 1.001, 1.0001), Point("elsewhere", 9, 9)]
    svg = Scatter("t", "x", "y", points).svg()
    assert [name in re.findall(r">([^<]*)</text>", svg) for name in ("first", "beside it", "elsewhere")] == [1, 0, 1]
    assert "<title>beside it: " in svg


def test_the_front_is_a_line_through_the_best():
    points = [Point("a", 1, 1), Point("b", 2, 2), Point("worse", 2, 1)]
    charts = (Scatter("t", "x", "y", points, front).svg() for front in (True, False))
    assert [svg.count("<polyline") for svg in charts] == [1, 0]


def test_what_ran_is_told_once_a_case_and_a_prompt_with_its_seed(tmp_path):
    results = Results.opened(tmp_path / "r", prompts=[{"name": "Stars", "text": "three stars", "seed": 1}])
    for run in (1, 2):
        row = Row("off", group="Stars", prompt="Stars", seed=1, run=run, seconds=1.0, ran="30 calls", as_prompted=1.0)
        results.append(row, picture())
    page = write_report(results) and (results.folder / "report.html").read_text("utf-8")
    assert page.count("<li><code>off: 30 calls</code></li>") == 1
    assert "<h2>Stars, seed 1</h2>" in page
    assert "three stars" in page
    assert "1.00 s, as prompted" in page
    headings, cells = table_of([results.rows()[0], Row("b", as_prompted=0.5, process_bytes=2**21)])
    assert [line[headings.index("As prompted")] for line in cells] == ["100%", "50%"]
    assert [line[headings.index("Process MiB")] for line in cells] == ["–", "2"]


def test_numbers_are_written_to_their_digits():
    headings, cells = table_of([Row("a", seconds=1.234, ssim=0.98765, psnr=math.inf, allocated_bytes=2**20)])
    assert dict(zip(headings, cells[0], strict=True)) == {
        "Settings": "a",
        "Seconds": "1.23",
        "Allocated MiB": "1",
        "SSIM": "0.9877",
        "PSNR dB": "inf",
    }


def test_the_documentation_has_every_column():
    text = (Path(__file__).parents[2] / "docs" / "benchmark.md").read_text("utf-8")
    lines = [f"| `{f.name}` | {f.metadata['doc']} |" for f in dataclasses.fields(Row)]
    assert "\n".join(lines) in text
