"""Whatever ends a generation, and whoever generates inside it: everything of ours is closed.

Most of it is asserted where the fixture `case` ends: the stock picture is what it was, and nothing of ours is left.
"""

import ast
import threading

import pytest

from sdxl_optim.hosts.webui.certain_end import ASKED

from . import client as api
from .live import ALL, DEEPCACHE, HIRES, SMALL, SMALLER, error_of, reported
from .test_techniques import noise

KINDS = ["runtime", "oom"]


def test_the_host_asks_the_question_that_the_end_is_tied_to(client):
    """Once, in the `finally` of process_images, whose request is its argument `p`."""
    function = ast.parse(client.get("/others/process_images")["source"]).body[0]
    assert [argument.arg for argument in function.args.args] == ["p"]
    assert not [
        n for n in ast.walk(function) if isinstance(n, ast.Name) and n.id == "p" and isinstance(n.ctx, ast.Store)
    ]
    questions = [n for n in ast.walk(function) if isinstance(n, ast.If) and f"if {ast.unparse(n.test)}:" == ASKED]
    ends = [n for statement in function.body if isinstance(statement, ast.Try) for n in statement.finalbody]
    assert len(questions) == 1
    assert questions[0] in ends


@pytest.fixture
def case(case):
    case.counts = False
    return case


@pytest.mark.parametrize("kind", [*KINDS, "nans"])
@pytest.mark.parametrize("where", ["unet", "vae", "hires"])
def test_the_host_fails(case, where, kind):
    request = {**SMALLER, **(HIRES if where == "hires" else {})}
    case.fault(where, kind, after=5 if where != "vae" else 0)
    error = error_of(lambda: case.txt2img(ALL, **request))
    assert ("NaNs was produced" if kind == "nans" else f"probe fault: {where}") in str(error)
    case.counts = True
    case.txt2img(ALL, **request)


def test_the_second_picture_fails_in_the_decoder(case):
    case.fault("vae", "oom", after=1)
    assert "probe fault: vae" in str(error_of(lambda: case.txt2img(ALL, **SMALLER, n_iter=2)))


@pytest.mark.parametrize("kind", KINDS)
def test_img2img_fails(case, kind):
    case.fault("unet", kind, after=3)
    assert "probe fault" in str(error_of(lambda: case.img2img(noise(), ALL, **SMALL)))


PLACES = (
    "cfg_denoiser", "cfg_denoised", "cfg_after_cfg", "before_process", "process", "before_process_batch",
    "process_batch", "process_before_every_sampling", "post_sample", "before_hr", "postprocess_batch",
    "postprocess_image", "postprocess",
)  # fmt: skip


@pytest.mark.parametrize("where", PLACES)
def test_another_script_fails(case, where):
    """The host reports it and goes on, and so must the run: the picture is the one without the failure."""
    request = {**SMALLER, **HIRES}
    expected = case.txt2img(ALL, **request)[0]
    case.fault(where, after=3 if where.startswith("cfg") else 0)
    picture = case.txt2img(ALL, **request)[0]
    assert case.post("/probe/off") == {"unspent_faults": 0}
    assert api.same(picture, expected)


@pytest.mark.parametrize("kind", ["interrupt", "skip"])
@pytest.mark.parametrize("request_", [{}, {"n_iter": 2}, HIRES], ids=["one", "two", "hires"])
def test_an_interrupt_at_half_of_the_steps(case, kind, request_):
    case.fault("unet", kind, after=5)
    pictures = case.txt2img(ALL, **SMALLER, **request_)
    first = reported(pictures[0])[0]
    assert first["stopped"]
    assert first["calls"] == "6"
    assert not any(report["unplanned"] for picture in pictures for report in reported(picture))


def test_an_interrupt_from_outside(case):
    case.options(live_previews_enable=True)
    case.fault("unet", "sleep", after=5, seconds=1.0)

    def interrupt():
        state = {"job_count": 0}
        while not (state["job_count"] and state["sampling_step"]):
            state = case.get("/sdapi/v1/progress")["state"]
        case.post("/sdapi/v1/interrupt")

    thread = threading.Thread(target=interrupt)
    thread.start()
    pictures = case.txt2img(ALL, **{**SMALL, "steps": 20})
    thread.join()
    first = reported(pictures[0])[0]
    assert first["stopped"]
    assert 0 < int(first["calls"]) < 20


def test_live_previews_polled_meanwhile(case):
    case.options(live_previews_enable=True)
    plain = case.txt2img(ALL, **{**SMALL, "steps": 20})[0]
    done, previews = threading.Event(), []

    def poll():
        while not done.is_set():
            previews.append(case.get("/sdapi/v1/progress")["current_image"])

    thread = threading.Thread(target=poll)
    thread.start()
    case.counts = True
    picture = case.txt2img(ALL, **{**SMALL, "steps": 20})[0]
    done.set()
    thread.join()
    assert any(previews)
    assert api.same(picture, plain)


# ---- X/Y/Z plot


def plot(case, axes: str, values: str, script: dict, **request):
    args = [axes, values, [], 0, "", [], 0, "", [], False, True, False, False, False, False, False, 0, False]
    return case.txt2img(script, **{**SMALLER, **request}, script_name="x/y/z plot", script_args=args)


AXIS_STEPS = 4


@pytest.mark.parametrize("where", ["unet", "vae"])
def test_a_cell_of_a_plot_fails(case, where):
    case.fault(where, after=1 if where == "vae" else 14)
    pictures = plot(case, AXIS_STEPS, "12, 13, 14", ALL)
    case.post("/probe/off")
    good = plot(case, AXIS_STEPS, "12, 13, 14", ALL)
    assert len(pictures) == len(good)
    assert "18 of 24 rows" in pictures[0].infotext + pictures[1].infotext


def test_cells_of_a_plot_report_for_themselves(case):
    texts = [picture.infotext for picture in plot(case, AXIS_STEPS, "12, 14", ALL)]
    assert any("12 calls, 18 of 24 rows" in text for text in texts)
    assert any("14 calls, 21 of 28 rows" in text for text in texts)


# ---- generations inside generations


def made(case):
    return [api.Picture(api.pixels(one["image"]), one["infotext"]) for one in case.get("/others/made")["made"]]


INNER = {"prompt": "a blue bird", "negative_prompt": "", "seed": 5, "steps": 6, "width": 64, "height": 64}
WITHOUT_TINY = {**ALL, "vae": {"decoder": "host"}}


def same_pictures(some, others):
    return all((a.pixels == b.pixels).all() and a.infotext == b.infotext for a, b in zip(some, others, strict=True))


INSIDE = {
    "stock": (WITHOUT_TINY, None),
    "all": (ALL, ALL),
    "deepcache": (WITHOUT_TINY, {**DEEPCACHE, "hires": "off"}),
    "in stock": (None, ALL),
}


@pytest.mark.parametrize("where", ["process", "before_hr", "cfg_denoiser", "postprocess_batch", "postprocess_image"])
@pytest.mark.parametrize("settings", INSIDE)
def test_a_generation_inside_a_generation(case, where, settings):
    outside, inside = INSIDE[settings]
    request = {**SMALLER, **(HIRES if where == "before_hr" else {"n_iter": 2})}
    expected_outside = case.txt2img(outside, **request)
    expected_inside = case.txt2img(inside, **INNER)
    case.post("/others", act="nest", where=where, settings=inside)
    pictures = case.txt2img(outside, **request)
    assert same_pictures(made(case), expected_inside)
    assert same_pictures(pictures, expected_outside)


@pytest.mark.parametrize("where", ["cfg_denoiser", "postprocess_image"])
def test_a_copy_of_the_request_generated_inside_without_scripts(case, where):
    expected = case.txt2img(ALL, **SMALLER, n_iter=2)
    case.post("/others", act="nest_copy", where=where)
    pictures = case.txt2img(ALL, **SMALLER, n_iter=2)
    assert len(made(case)) == 2
    if where == "postprocess_image":
        assert same_pictures(pictures, expected)
    else:  # its calls pass through the outer run's UNet
        assert (pictures[1].pixels == expected[1].pixels).all()
