"""The host's options that are ours for a run: what is saved meanwhile is the user's, and frozen settings are no error.
And the host's own protection of its API holds for ours."""

import contextlib
import json
import threading
import time

import numpy as np
import pytest

from . import server
from .client import ApiError, Client
from .conftest import running
from .live import SMALLER, TINY, notes

OPTION = "sd_vae_decode_method"
NAME = ("someone", "a-word")


@pytest.fixture(scope="module")
def own():
    """A server whose options may be changed."""
    yield from running()


@pytest.fixture(scope="module")
def locked():
    if server.webui_dir() is None:
        pytest.skip("SD_WEBUI_DIR is not set")
    with server.WebUI(flags=("--api-auth", ":".join(NAME), "--freeze-settings")) as webui:
        yield webui


@contextlib.contextmanager
def while_running(client, script: dict):
    """Entered in the middle of a run, left at its end."""
    client.fault("unet", "sleep", after=5, seconds=2.0)
    made = []
    thread = threading.Thread(target=lambda: made.extend(client.txt2img(script, **SMALLER)))
    thread.start()
    while not client.get("/sdapi/v1/progress")["state"]["sampling_step"]:
        time.sleep(0.05)
    yield made
    assert not made, "the run was over too soon"
    thread.join()


def saved(webui) -> dict:
    return json.loads(webui.config_file.read_text("utf-8"))


def test_what_is_saved_in_a_run_is_the_users(own):
    client = own.client
    with while_running(client, TINY) as made:
        client.options(show_progress_every_n_steps=3)
        assert saved(own)["show_progress_every_n_steps"] == 3
        assert saved(own).get(OPTION, "Full") == "Full"
        assert client.options()[OPTION] == "TAESD"
    assert "VAE Decoder: TAESD" in made[0].infotext
    assert client.options()[OPTION] == "Full"


def test_what_the_user_changes_in_a_run_stays(own):
    client = own.client
    with while_running(client, TINY):
        client.options(**{OPTION: "Approx NN"})
    assert client.options()[OPTION] == saved(own)[OPTION] == "Approx NN"


def test_frozen_settings(locked):
    client = Client(locked.url, NAME)
    plain = client.txt2img(**SMALLER)[0]
    picture = client.txt2img({**TINY, "backend": {"attention": "sdpa"}}, **SMALLER)[0]
    assert "VAE Decoder: TAESD" in picture.infotext
    assert notes(picture) == ""
    assert not np.array_equal(picture.pixels, plain.pixels)
    assert np.array_equal(client.txt2img(**SMALLER)[0].pixels, plain.pixels)
    assert "Error running" not in locked.log()


def test_the_plan_is_for_those_who_may_use_the_api(locked):
    with pytest.raises(ApiError) as refused:
        Client(locked.url).post("/sdxl-optim/plan", request=SMALLER)
    assert refused.value.status == 401
    assert Client(locked.url, NAME).post("/sdxl-optim/plan", request=SMALLER)["passes"]["base"]["calls"] == 12


@pytest.mark.parametrize(("name", "value"), [("steps", 0), ("steps", 10**9), ("hr_second_pass_steps", -1)])
def test_a_plan_of_too_many_steps(locked, name, value):
    with pytest.raises(ApiError) as refused:
        Client(locked.url, NAME).post("/sdxl-optim/plan", request={**SMALLER, name: value})
    assert refused.value.status == 422
    assert f"request.{name}: {value} is not allowed; allowed: an integer from" in refused.value.body["detail"]
