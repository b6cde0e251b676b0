"""The study of quality and work: its cases, counts, tables and charts."""

import dataclasses
import json

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("DeepCache")
pytest.importorskip("skimage")

from demo_model import study, study_report
from sdxl_optim.bench.cases import Case
from sdxl_optim.bench.results import Results
from sdxl_optim.settings import from_dict


def made_up(part: study.Part, case: Case, ssim: float) -> dict:
    numbers = {"full": 10, "cached": 20, "rows": 1.0, "gflop": 50.0, "decoding": 33.0, "work": 0.5, "device": "a card"}
    numbers |= {"ssim": ssim, "ssim_least": ssim - 0.1, "lpips": None, "passes": 60, "prompts": 64}
    return study.described(case, part) | numbers | {"seconds": {"sampling": 0.01, "decode": 0.002}}


@pytest.fixture
def rows():
    """Adaptive is nearest everywhere."""
    ssim = {"uniform": 0.95, "nonuniform": 0.96, "adaptive": 0.99}
    return [
        made_up(part, case, ssim[case.settings.deepcache.mode if case.settings.deepcache.enabled else "uniform"])
        for part in study.parts()
        for case in part.cases
    ]


def test_cases_are_named_once_and_allowed(rows):
    assert len({(r["group"], r["name"]) for r in rows}) == len(rows) == 103
    assert {r["group"] for r in rows} == set(study.GROUPS)
    cases = [case for part in study.parts() for case in part.cases]
    for case, row in zip(cases, rows, strict=True):
        assert case.settings == from_dict({"enabled": case.settings.enabled, **row["settings"]})
        assert case.together
    assert {(r["sampler"], r["reference_steps"]) for r in rows if r["group"] == "steps"} == {("euler", 50)}
    assert [r["steps"] for r in rows if r["group"] == "steps"] == [8, 10, 12, 15, 20, 25, 30, 40, 50]
    assert [(r["name"], r["cfg"]) for r in rows if r["cfg"] != study.CFG] == [("30 steps, CFG 1", 1.0)]


def test_modes_are_compared_at_equal_full_calls(rows):
    found = study_report.modes(rows)
    assert len(found) == 18
    assert all(set(by) == {"uniform", "nonuniform", "adaptive"} for by in found.values())
    assert "than uniform in 18 of 18 settings, farther in 0" in study_report._verdict(rows)


def test_a_page_is_filled_twice_the_same(tmp_path, rows):
    page = tmp_path / "quality.md"
    marks = "\n\n".join(f"<!-- study: {name} -->\n<!-- end -->" for name in study_report.TABLES)
    page.write_text(f"# Quality\n\n{marks}\n\nConclusions.\n")
    study_report.fill(page, rows)
    text = page.read_text()
    assert "| 0.75, 0.9 |" not in text
    assert "| stop 0.75 | 10 + 20 | 0.50 | 12.0 | 0.9500 (0.850) | 94 % |" in text
    assert "| dpm++-2m | 50 | 5 | 10 | 0.9500 | 0.9600 | **0.9900** | 94 % / 94 % / 94 % |" in text
    study_report.fill(page, rows)
    assert page.read_text() == text
    assert text.endswith("Conclusions.\n")
    charts = sorted(p.name for p in (tmp_path / "images").iterdir())
    assert charts == sorted(f"{name}.svg" for name in study_report.charts(rows))
    assert all("<circle" in (tmp_path / "images" / name).read_text() for name in charts)


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    return study.Study(study.export.WEIGHTS, "cpu", 2, 2, False)


def test_work_follows_the_plan(small):
    part = study.Part("euler", 12, ())

    def gflop(settings=None, **more):
        return small.gflop(study.study_case("", "", settings, **more), part)["gflop"]

    stock = gflop()
    assert gflop(cfg=1.0) == pytest.approx(stock / 2)
    assert gflop(steps=6) == pytest.approx(stock / 2)
    assert gflop(study.cutoff(0.5)) == pytest.approx(stock * 0.75)
    cached = gflop(study.deepcache(3))
    assert stock / 3 < cached < stock * 0.6
    assert cached < gflop(study.deepcache(3, cache_branch_id=2)) < stock
    assert gflop(study.freeu()) == pytest.approx(stock)


def test_a_row_says_what_was_drawn(small, tmp_path):
    cached = study.study_case("mode", "x", study.deepcache(2, mode="adaptive"))
    cases = (cached, study.study_case("stock", "y"), study.study_case("cutoff", "z", study.cutoff(0.5)))
    results = Results.opened(tmp_path / "part")
    row, stock, cut = small.rows(study.Part("euler", 4, cases), cases, results)
    assert (row["group"], row["name"], row["steps"], row["prompts"]) == ("mode", "x", 4, 2)
    assert (row["full"], row["cached"], row["rows"]) == (2, 2, 1.0)
    assert 0.3 < row["ssim_least"] <= row["ssim"] < 1
    assert row["passes"] in (0, 1, 2)
    assert row["work"] < 0.8 < stock["work"] == 1
    assert cut["rows"] == 0.75
    assert stock["ssim"] == pytest.approx(1.0, abs=1e-5)
    assert all(seconds >= 0 for seconds in row["seconds"].values())
    drawn = results.rows()
    assert [(r.case, r.prompt, r.seed, r.rows, r.stock_rows) for r in drawn if r.case != "cutoff: z"] == [
        (case, str(seed), seed, 8, 8) for case in ("reference", "mode: x", "stock: y") for seed in (0, 1)
    ]
    again = small.rows(study.Part("euler", 4, cases), cases, results)
    assert again[0] == row
    assert results.rows() == drawn


def test_a_picture_is_the_products_own(small):
    """Drawn with others, it is what one request for it alone gives."""
    import numpy as np

    from sdxl_optim.hosts.standalone.generate import Request, generate

    part = study.Part("euler", 3, ())
    host = study.StudyHost(small.models, part, 2, small.classifier)
    case = study.study_case("together", "x", study.deepcache(2) | study.TINY)
    made = host.make_together(case, small.prompts)
    for (image, row, _), prompt in zip(made, small.prompts, strict=True):
        request = Request(prompt.text, steps=3, cfg=study.CFG, seed=prompt.seed)
        alone = generate(small.models, request, case.settings).images[0]
        assert np.abs(np.asarray(image, dtype=float) - np.asarray(alone)).max() <= 2
        assert row.decoder == "Tiny VAE"


def test_a_case_that_fails_ends_the_study(small, tmp_path, monkeypatch):
    def fail(self, case, prompts):
        raise RuntimeError("not as planned: 3 calls")

    monkeypatch.setattr(study.StudyHost, "_drawn", fail)
    case = study.study_case("stock", "y")
    with pytest.raises(RuntimeError, match="not as planned"):
        small.rows(study.Part("euler", 4, (case,)), [case], Results.opened(tmp_path / "part"))


def test_the_losses_have_a_panel_a_stage(tmp_path):
    pytest.importorskip("matplotlib")
    lines = [f"{stage},{step},{1 / step}" for stage in "abcd" for step in (1, 9)]
    (tmp_path / "losses.csv").write_text("\n".join(["stage,step,loss", *lines]))
    panels = study.evaluate.loss_chart(tmp_path / "losses.csv").axes
    assert [axes.get_title() for axes in panels if axes.get_visible()] == [f"{stage}, 9 steps" for stage in "abcd"]
    assert {axes.get_yscale() for axes in panels if axes.get_visible()} == {"log"}
    assert panels[0].lines[0].get_ydata() == pytest.approx([1, 1 / 9])


def test_what_is_there_is_not_drawn_again(tmp_path, rows, capsys):
    (tmp_path / "study.json").write_text(json.dumps(rows))
    assert study.main(["--out", str(tmp_path), "--resume"]) == 0
    assert f"{len(rows)} rows" in capsys.readouterr().out
    assert (tmp_path / "quality-all.svg").is_file()
    with pytest.raises(SystemExit):
        study.main(["--out", str(tmp_path)])


def test_a_part_that_was_begun_is_not_begun_again(tmp_path, capsys):
    (tmp_path / study.parts()[0].folder).mkdir()
    with pytest.raises(SystemExit):
        study.main(["--out", str(tmp_path)])
    assert "--resume goes on from it" in capsys.readouterr().err


def test_the_committed_figures_are_of_these_cases(rows):
    """docs/quality.json fills the page as the study would now."""
    path = study.Path(study.__file__).parents[1] / "docs" / "quality.json"
    committed = json.loads(path.read_text("utf-8"))
    assert {(r["group"], r["name"], r["sampler"], r["steps"], r["cfg"]) for r in committed} == {
        (r["group"], r["name"], r["sampler"], r["steps"], r["cfg"]) for r in rows
    }
    by_name = {(r["group"], r["name"]): r for r in rows}
    for r in committed:
        ours = by_name[r["group"], r["name"]]
        assert dataclasses.replace(from_dict(r["settings"]), enabled=True) == dataclasses.replace(
            from_dict(ours["settings"]), enabled=True
        )
        assert (r["reference_steps"] or r["steps"]) == ours["reference_steps"]
        assert set(ours) == set(r)
