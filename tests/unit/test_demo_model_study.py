"""The study of quality and work: its cases, counts, tables and charts."""

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("DeepCache")

from demo_model import study, study_report
from sdxl_optim.settings import from_dict


def made_up(case: study.Case, ssim: float) -> dict:
    from dataclasses import asdict

    numbers = {"full": 10, "cached": 20, "rows": 1.0, "gflop": 50.0, "decoding": 33.0, "work": 0.5, "device": "a card"}
    numbers |= {"ssim": ssim, "ssim_least": ssim - 0.1, "lpips": None, "passes": 60, "prompts": 64}
    return asdict(case) | numbers | {"seconds": {"sampling": 0.01, "decode": 0.002}}


@pytest.fixture
def rows():
    """Adaptive is nearest everywhere."""
    ssim = {"uniform": 0.95, "nonuniform": 0.96, "adaptive": 0.99}
    modes = [case.settings.get("deepcache", {}).get("mode", "uniform") for case in study.cases()]
    return [made_up(case, ssim[mode]) for case, mode in zip(study.cases(), modes, strict=True)]


def test_cases_are_named_once_and_allowed():
    cases = study.cases()
    assert len({(c.group, c.name) for c in cases}) == len(cases)
    for case in cases:
        from_dict({"enabled": True, **case.settings})


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
    assert all('<g class="point">' in (tmp_path / "images" / name).read_text() for name in charts)


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    return study.Study(study.export.WEIGHTS, "cpu", 1, 1, False)


def test_work_follows_the_plan(small):
    def gflop(settings, cfg=5.0):
        return small._gflop(study.Case("", "", settings, steps=12, cfg=cfg))

    stock = gflop({})
    assert gflop({}, cfg=1.0) == pytest.approx(stock / 2)
    assert gflop(study.cutoff(0.5)) == pytest.approx(stock * 0.75)
    cached = gflop(study.deepcache(3))
    assert stock / 3 < cached < stock * 0.6
    assert cached < gflop(study.deepcache(3, cache_branch_id=2)) < stock
    assert gflop(study.freeu()) == pytest.approx(stock)


def test_a_row_says_what_was_drawn(small):
    row = small.row(study.Case("mode", "x", study.deepcache(2, mode="adaptive"), steps=4))
    assert (row["full"], row["cached"], row["rows"]) == (2, 2, 1.0)
    assert 0.3 < row["ssim"] < 1
    assert row["passes"] in (0, 1)
    assert small.row(study.Case("stock", "y", steps=4))["ssim"] == pytest.approx(1.0, abs=1e-5)


def test_what_is_there_is_not_drawn_again(tmp_path, rows, capsys):
    (tmp_path / "study.json").write_text(study.json.dumps(rows))
    assert study.main(["--out", str(tmp_path), "--resume"]) == 0
    assert f"{len(rows)} rows" in capsys.readouterr().out
    assert (tmp_path / "quality-all.svg").is_file()
    with pytest.raises(SystemExit):
        study.main(["--out", str(tmp_path)])
