"""A hundred generations in a row, and two clients at once: nothing stays, nothing grows."""

import random
import threading

import pytest

from . import client as api
from .live import ALL, DEEPCACHE, SMALLER
from .test_infotext import random_settings
from .test_techniques import noise

SAMPLERS = ["Euler", "Euler a", "Heun", "DPM++ 2M", "DPM++ SDE", "DDIM", "UniPC", "LCM"]
COUNT = 100
STOCK_COUNT = 25


def random_request(rng: random.Random) -> dict:
    request = {
        "width": rng.choice([64, 96, 128]),
        "height": rng.choice([64, 96]),
        "steps": rng.randint(3, 9),
        "seed": rng.randint(1, 9),
        "batch_size": rng.choice([1, 1, 2]),
        "sampler_name": rng.choice(SAMPLERS),
        "cfg_scale": rng.choice([1.0, 5.0]),
        "enable_hr": (hires := rng.random() < 0.2),
        **({"hr_upscaler": "Latent", "hr_scale": 1.5, "hr_second_pass_steps": 4} if hires else {}),
    }
    if request["sampler_name"] == "UniPC":
        request["steps"] = max(request["steps"], 6)  # the host refuses no more than three, as img2img makes of fewer
    return request


def settings_without_compiling(rng: random.Random) -> dict:
    """Inductor takes minutes a size on a CPU; test_backends has it."""
    settings = random_settings(rng)
    if settings["backend"]["name"] == "inductor":
        settings["backend"]["name"] = "eager"
    return settings


def generate(client, script, rng: random.Random):
    request = random_request(rng)
    if rng.random() < 0.2:
        return client.img2img(noise(64, 64), script, **{**request, "enable_hr": False})
    return client.txt2img(script, **request)


@pytest.mark.timeout(1200)
def test_a_hundred_in_a_row_leave_nothing_and_grow_nothing(case, webui):
    """Stock generations of the same kind say how much a server grows by itself."""
    client = webui.client
    rng = random.Random(1)
    for _ in range(10):
        generate(client, settings_without_compiling(rng), rng)
        generate(client, None, rng)
    case.post("/probe/memory")
    start = case.get("/probe/memory")
    for _ in range(STOCK_COUNT):
        generate(client, None, rng)
    stock = case.get("/probe/memory")
    for _ in range(COUNT):
        for picture in generate(client, settings_without_compiling(rng), rng):
            assert "not as planned" not in picture.infotext
    generate(client, None, rng)  # what offload and fp8 keep stays until the first generation without them
    end = case.get("/probe/memory")
    case.post("/others/stop_tracing")
    grown = {key: end[key] - stock[key] for key in ("tensors", "tensor_bytes", "python_bytes")}
    stock_grown = {key: stock[key] - start[key] for key in grown}
    print(f"grown by {STOCK_COUNT} stock generations: {stock_grown}, by {COUNT} of ours: {grown}")  # noqa: T201
    assert grown["tensors"] <= 8 + 4 * max(0, stock_grown["tensors"])
    assert grown["tensor_bytes"] <= 2**20 + 4 * max(0, stock_grown["tensor_bytes"])
    assert grown["python_bytes"] <= 2**20 + 4 * max(0, stock_grown["python_bytes"])
    case.txt2img(ALL, **SMALLER)


def test_two_clients_at_once(case):
    """The host generates for one after the other; each gets its own settings' picture."""
    case.counts = False
    kinds = {"all": ALL, "deepcache": DEEPCACHE, "stock": None}
    expected = {name: case.txt2img(script, **SMALLER)[0] for name, script in kinds.items()}
    wrong = []

    def generate_in_turn(names):
        for name in names * 3:
            if not api.same(case.txt2img(kinds[name], **SMALLER)[0], expected[name]):
                wrong.append(name)

    threads = [threading.Thread(target=generate_in_turn, args=[names]) for names in
               (["all", "stock"], ["deepcache", "all"], ["stock", "deepcache"])]  # fmt: skip
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
