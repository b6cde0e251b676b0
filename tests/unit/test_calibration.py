"""Adaptive DeepCache: the calibration's values, its file, and the steps that follow from it."""

from __future__ import annotations

import itertools
import json
import math

import pytest
from host_loop import facts_for
from hypothesis import given
from hypothesis import strategies as st

from sdxl_optim.errors import SettingsError
from sdxl_optim.planning.plan import make_plan
from sdxl_optim.sampling.loop import Loop, Rows
from sdxl_optim.settings import from_dict
from sdxl_optim.techniques.deepcache.calibration import (
    Calibration,
    find,
    full_steps_adaptive,
    is_worthwhile,
    load,
    path_beside,
    save,
    sigma_of,
    timestep_of,
)
from sdxl_optim.techniques.deepcache.positions import full_steps_uniform

GRID = (951.0, 701.0, 451.0, 201.0, 1.0)


def calibration(error=lambda kept, now: (kept - now) / 1000, branch: int = 0) -> Calibration:
    rows = tuple(tuple(error(a, b) if j > i else 0.0 for j, b in enumerate(GRID)) for i, a in enumerate(GRID))
    return Calibration("a model", branch, GRID, rows)


LATE = calibration(lambda kept, now: 1.0 if now < 300 else 0.0)  # features change at the end


def timesteps(n: int) -> list[float]:
    return [951 - 950 * i / n for i in range(n)]


def cost(calibration: Calibration, steps: list[float], full) -> float:
    sigmas, total, kept = [*map(sigma_of, steps), 0.0], 0.0, 0
    for i, t in enumerate(steps):
        if i in full:
            kept = i
        else:
            total += abs(sigmas[i] - sigmas[i + 1]) / math.hypot(1, sigmas[i]) * calibration.at(steps[kept], t)
    return total


def test_values_lie_between_the_grids():
    found = calibration(lambda kept, now: (kept - now) / 1000)
    assert found.at(951, 701) == pytest.approx(0.25)
    assert found.at(951, 576) == pytest.approx(0.375)
    assert found.at(2000, -5) == found.at(951, 1)


@given(st.floats(0, 999))
def test_timesteps_and_noise_levels_are_each_others(t):
    assert timestep_of(sigma_of(t)) == pytest.approx(t, abs=1e-6)


def test_noise_levels_are_sdxls():
    assert sigma_of(999) == pytest.approx(14.6146, abs=1e-3)
    assert sigma_of(0) == pytest.approx(0.0292, abs=1e-3)
    assert timestep_of(0.0) == 0
    assert timestep_of(100.0) == 999


@pytest.mark.parametrize("n", [1, 5, 8])
def test_the_full_steps_are_the_best_of_all_choices(n):
    found = calibration(lambda kept, now: math.sqrt(kept - now) * (2 if now < 400 else 1))
    steps = timesteps(n)
    for count in range(1, n + 1):
        full = full_steps_adaptive(found, steps, count)
        assert len(full) == count
        assert 0 in full
        others = itertools.combinations(range(1, n), count - 1)
        assert cost(found, steps, full) == pytest.approx(min(cost(found, steps, {0, *other}) for other in others))


@given(st.integers(1, 60), st.integers(1, 10))
def test_there_are_as_many_as_uniform_has(n, interval):
    count = len(full_steps_uniform(n, interval))
    assert len(full_steps_adaptive(calibration(), timesteps(n), count)) == count


def test_full_steps_lie_where_features_change():
    full = sorted(full_steps_adaptive(LATE, timesteps(20), 5))
    assert full[0] == 0
    assert min(full[1:]) >= 13


def test_a_file_brings_it_back(tmp_path):
    path = path_beside(tmp_path)
    save(calibration(), path)
    assert load(path) == calibration()
    assert find(tmp_path) == (calibration(), None)


def test_it_lies_beside_a_file(tmp_path):
    model = tmp_path / "model.v1.safetensors"
    model.touch()
    assert path_beside(model) == tmp_path / "model.v1.deepcache.json"
    found, reason = find(model)
    assert found is None
    assert "calibrate` writes model.v1.deepcache.json" in reason


@pytest.mark.parametrize("text", ["", "{}", '{"model": 1, "branch": 0, "timesteps": [1], "error": [[0]]}', "[]"])
def test_another_file_is_refused(tmp_path, text):
    path = tmp_path / "deepcache.json"
    path.write_text(text)
    with pytest.raises(SettingsError, match=r"calibration: 'deepcache\.json' is not allowed"):
        load(path)
    assert find(tmp_path) == (None, "deepcache.json is not a file that `calibrate` wrote")


def plan(found, reason=None, **options):
    settings = from_dict({"deepcache": {"enabled": True, "mode": "adaptive", **options}})
    facts = {"timesteps": tuple(timesteps(20)), "calibration": found, "no_calibration": reason}
    return make_plan(settings, facts_for(Loop.of_steps([1] * 20), Rows(1, 1), 5.0, 9, **facts))


def full(plan) -> set[int]:
    return {i for i, step in enumerate(plan.steps) if "deepcache" not in step}


def test_a_plan_takes_its_steps():
    made = plan(LATE, cache_interval=4)
    assert full(made) == full_steps_adaptive(LATE, timesteps(20), 5) != full_steps_uniform(20, 4)
    assert not made.notes


def test_a_plan_keeps_its_window():
    made = plan(LATE, cache_interval=5, start=0.25, stop=0.75)
    inside = full_steps_adaptive(LATE, timesteps(20)[5:15], 2)
    assert full(made) == {*range(5), *(5 + i for i in inside), *range(15, 20)}


@pytest.mark.parametrize(("gain", "worthwhile"), [(0.1, False), (0.16, False), (0.18, True), (0.5, True)])
def test_a_small_promise_is_not_trusted(gain, worthwhile):
    """Three steps, the second or the third of which can be the full one: only the second one's error differs."""
    steps = timesteps(3)
    weights = [abs(sigma_of(a) - sigma_of(b)) / math.hypot(1, sigma_of(a)) for a, b in itertools.pairwise(steps)]
    weights.append(sigma_of(steps[2]) / math.hypot(1, sigma_of(steps[2])))
    grid = (*steps, 1.0)

    def error(kept, now):
        return {steps[1]: 1 / weights[1], steps[2]: (1 - gain) / weights[2]}.get(now, 0.0)

    rows = tuple(tuple(error(a, b) if j > i else 0.0 for j, b in enumerate(grid)) for i, a in enumerate(grid))
    found = Calibration("a model", 0, grid, rows)
    assert full_steps_adaptive(found, steps, 2) == {0, 1}
    assert is_worthwhile(found, steps, frozenset({0, 2})) is worthwhile


@pytest.mark.parametrize(
    ("found", "reason", "sentence"),
    [
        (None, "it has none", "DeepCache note: full steps are uniform, not adaptive: it has none"),
        (calibration(branch=2), None, "not adaptive: the calibration is of branch 2, not 0"),
        (calibration(), None, "not adaptive: the calibration promises too small a gain in this run"),
    ],
)
def test_without_a_calibration_a_plan_is_uniform_and_says_so(found, reason, sentence):
    made = plan(found, reason, cache_interval=4)
    assert full(made) == full_steps_uniform(20, 4)
    assert sentence in str(made.notes[0])


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory):
    pytest.importorskip("DeepCache")
    from sdxl_optim.hosts.standalone import tiny

    folder = tmp_path_factory.mktemp("tiny")
    pipe = tiny.tiny_base()
    pipe.unet.register_to_config(sample_size=8)
    pipe.save_pretrained(folder)
    return folder


def test_the_command_writes_what_generate_then_uses(tiny_model, tmp_path, capsys):
    from sdxl_optim import cli

    (tmp_path / "prompts.txt").write_text("a red circle\n")
    options = ["--prompts", str(tmp_path / "prompts.txt"), "--levels", "5", "--device", "cpu"]
    assert cli.main(["calibrate", str(tiny_model), *options]) == 0
    found = load(tiny_model / "deepcache.json")
    assert len(found.timesteps) == 5
    for i, row in enumerate(found.error):
        assert all(e == 0 for e in row[: i + 1])
        assert all(e > 0 for e in row[i + 1 :])
    capsys.readouterr()
    sampling = ["--steps", "12", "--width", "64", "--height", "64", "--device", "cpu", "--out", str(tmp_path), "--json"]
    adaptive = ["--deepcache", "--deepcache.mode", "adaptive", "--deepcache.cache_interval", "3"]
    assert cli.main(["generate", "--model", str(tiny_model), "--prompt", "a red circle", *sampling, *adaptive]) == 0
    told = json.loads(capsys.readouterr().out)
    [note] = told["report"]["notes"]  # random weights change their features no more at one level than at another
    assert "the calibration promises too small a gain" in note["text"]
    assert told["report"]["passes"][0]["as_predicted"]
    assert told["plan"][0]["full"] == sorted(full_steps_uniform(12, 3))
    save(LATE, tiny_model / "deepcache.json")
    assert cli.main(["generate", "--model", str(tiny_model), "--prompt", "a red circle", *sampling, *adaptive]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["report"]["notes"] == []
    assert told["report"]["passes"][0]["as_predicted"]
    assert told["plan"][0]["full"] == sorted(full_steps_adaptive(LATE, told_timesteps(tiny_model), 4))


def told_timesteps(model) -> list[float]:
    from diffusers import EulerDiscreteScheduler

    scheduler = EulerDiscreteScheduler.from_pretrained(model, subfolder="scheduler")
    scheduler.set_timesteps(12)
    return [float(t) for t in scheduler.timesteps]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["nowhere"], "MODEL: 'nowhere' is not allowed; allowed: a folder in diffusers' format"),
        (["{model}", "--branch", "9", "--device", "cpu"], "--branch: 9 is not allowed; allowed: 0 to 8 for this model"),
        (["{model}", "--levels", "1"], "--levels: 1.0 is not allowed; allowed: an integer from 4 to 100"),
    ],
)
def test_the_command_says_what_is_wrong(tiny_model, capsys, options, sentence):
    from sdxl_optim import cli

    assert cli.main(["calibrate", *(o.format(model=tiny_model) for o in options)]) == 2
    assert sentence in capsys.readouterr().err
