"""The live plan: what it foretells is what the test's own hooks then count, and foretelling disturbs nothing."""

import random
import threading

import pytest

from .client import ApiError
from .live import SMALLER, comparable, seen

N = 100
FOX = "a red fox in the snow"
PROMPTS = [FOX, f"{FOX} AND a hill :0.5", ", ".join([FOX] * 20), f"a [fox:hare:0.5] on a hill, {FOX}", "<lora:x:1> bee"]
NO_LORA = PROMPTS[:4]  # the name of a network that is not there is left out of the prompt, too


def plan(client, request, settings, kind="txt2img"):
    return client.post("/sdxl-optim/plan", request=request, settings=settings, img2img=kind == "img2img")


def random_settings(rng) -> dict:
    settings = {
        "freeu": {"enabled": rng.random() < 0.3},
        "cfg_cutoff": {"enabled": rng.random() < 0.6, "stop": rng.randrange(101) / 100},
        "deepcache": {
            "enabled": rng.random() < 0.7,
            "cache_interval": rng.randint(1, 6),
            "cache_branch_id": rng.randint(0, 8),
            "mode": rng.choice(["uniform", "nonuniform"]),
            "start": rng.choice([0.0, 0.0, 0.2]),
            "stop": rng.choice([1.0, 1.0, 0.8]),
        },
    }
    if rng.random() < 0.3:
        settings["hires"] = rng.choice(["off", {"deepcache": {"enabled": True, "cache_interval": 2}}])
    if rng.random() < 0.2:
        settings = {"preset": rng.choice(["fastest", "fast", "balanced", "quality"])}
    return settings


def random_request(rng, samplers, schedulers) -> dict:
    request = {
        **SMALLER,
        "prompt": rng.choice(NO_LORA),
        "negative_prompt": rng.choice(["", "blurry", ", ".join(["blurry"] * 90)]),
        "steps": rng.randint(1, 18),
        "sampler_name": rng.choice(samplers),
        "scheduler": rng.choice(["Automatic", "Automatic", *schedulers]),
        "cfg_scale": rng.choice([1.0, 5.0, 5.0]),
        "batch_size": rng.choice([1, 1, 2]),
    }
    if rng.random() < 0.2:
        request |= {"enable_hr": True, "hr_scale": 1.5, "hr_upscaler": "Latent", "denoising_strength": 0.6}
        request["hr_second_pass_steps"] = rng.choice([0, 5])
    return request


@pytest.fixture(scope="module")
def lists(webui):
    samplers = [s["name"] for s in webui.client.get("/sdapi/v1/samplers")]
    schedulers = [s["label"] for s in webui.client.get("/sdapi/v1/schedulers")]
    return samplers, [s for s in schedulers if s != "Automatic"]


@pytest.fixture(scope="module")
def picture(webui):
    return webui.client.txt2img(**SMALLER)[0].pixels


def make(client, kind, picture, settings, request):
    if kind == "img2img":
        client.img2img(picture, settings, **request)
    else:
        client.txt2img(settings, **request)


@pytest.mark.parametrize("part", range(10))
def test_random_settings_and_samplers(client, lists, picture, part):
    rng = random.Random(800 + part)
    done = 0
    while done < N // 10:
        settings, request = random_settings(rng), random_request(rng, *lists)
        kind = "img2img" if rng.random() < 0.2 and not request.get("enable_hr") else "txt2img"
        if kind == "img2img":
            request["denoising_strength"] = rng.choice([0.3, 0.75, 1.0])
        what = f"{kind} {request} {settings}"
        foretold = plan(client, request, settings, kind)
        client.watch()
        try:
            make(client, kind, picture, settings, request)
        except ApiError:  # some samplers fail with few steps; then they do so without the extension
            with pytest.raises(ApiError):
                make(client, kind, picture, None, request)
            continue
        done += 1
        passes = seen(client.get("/probe/calls"))
        assert len(passes) == len(foretold["passes"]), what
        for line, told, made in zip(foretold["lines"], foretold["passes"].values(), passes, strict=True):
            if "at_least" in told:
                assert 0 < told["at_least"] <= made.calls, what
                assert f"at least {told['at_least']} calls" in line
                continue
            counts = {name: told[name] for name in ("calls", "rows", "full", "cached")}
            assert counts == vars(made), what
            if made.cached:
                assert f"{made.full} full and {made.cached} cached" in line
            steps = f"{told['steps']} steps"
            assert (f"{steps} in {made.calls} calls" if told["steps"] != made.calls else steps) in line


def test_dpm_adaptive_says_at_least_how_many(client):
    request = {**SMALLER, "sampler_name": "DPM adaptive"}
    told = plan(client, request, {"cfg_cutoff": {"enabled": True}})
    assert "this sampler chooses its steps while it runs" in told["lines"][0]
    assert told["notes"] == ["CFG cutoff refused: this sampler's number of steps can't be foreseen"]
    assert told["passes"]["base"]["at_least"] >= 18


def test_refusals_are_told_as_in_the_report(client):
    told = plan(client, {**SMALLER, "prompt": "a fox AND a hill"}, {"cfg_cutoff": {"enabled": True}})
    assert told["notes"] == ["CFG cutoff refused: prompts joined by AND need the unconditional rows"]


def test_the_same_while_the_last_runs_refiner_is_loaded(client):
    """The host puts the chosen checkpoint back when the next run begins. (What a cached call saves is told of the UNet
    that is loaded.)"""
    refined = {"refiner_checkpoint": "tiny-sdxl-refiner.safetensors", "refiner_switch_at": 0.5}
    request = {**SMALLER, "steps": 10, **refined}
    settings = {"deepcache": {"enabled": True, "cache_interval": 10}}
    before = plan(client, request, settings)["passes"]["base"]
    client.watch()
    client.txt2img(settings, **request)
    counts = vars(seen(client.get("/probe/calls"))[0])
    after = plan(client, request, settings)["passes"]["base"]
    assert counts["full"] == 2
    assert {name: before[name] for name in counts} == {name: after[name] for name in counts} == counts


@pytest.mark.parametrize("prompt", ["a fox # AND a dog", "# a hill AND a lake\na fox", "a fox #" + " hill" * 90])
def test_what_the_host_takes_out_of_a_prompt_is_not_counted(client, prompt):
    request = {**SMALLER, "prompt": prompt, "steps": 6}
    settings = {"cfg_cutoff": {"enabled": True, "stop": 0.5}}
    told = plan(client, request, settings)
    client.watch()
    client.txt2img(settings, **request)
    (made,) = seen(client.get("/probe/calls"))
    counts = {name: told["passes"]["base"][name] for name in ("calls", "rows", "full", "cached")}
    assert counts == vars(made)
    assert told["notes"] == []


def test_a_prompt_with_and_is_still_refused_beside_a_comment(client):
    request = {**SMALLER, "prompt": "a fox AND a hill # a comment"}
    told = plan(client, request, {"cfg_cutoff": {"enabled": True}})
    assert told["notes"] == ["CFG cutoff refused: prompts joined by AND need the unconditional rows"]


@pytest.mark.parametrize("name", ["DPM++ 2M Karras", "Euler Exponential", "DPM++ 2M SDE"])
def test_older_names_of_samplers_are_read_as_the_host_reads_them(client, name):
    request = {**SMALLER, "sampler_name": name, "steps": 6}
    told = plan(client, request, {"cfg_cutoff": {"enabled": True, "stop": 0.5}})
    client.watch()
    client.txt2img({"cfg_cutoff": {"enabled": True, "stop": 0.5}}, **request)
    (made,) = seen(client.get("/probe/calls"))
    assert {key: told["passes"]["base"][key] for key in ("calls", "rows")} == {"calls": made.calls, "rows": made.rows}


def test_a_whole_request_of_the_hosts_api_is_taken(client):
    whole = {**SMALLER, "send_images": False, "save_images": False, "script_name": None, "script_args": []}
    whole |= {"alwayson_scripts": {}, "sampler_index": "Euler", "override_settings_restore_afterwards": True}
    assert plan(client, whole, {}) == plan(client, SMALLER, {})
    started = {**whole, "init_images": ["x"], "mask": None, "include_init_images": False, "denoising_strength": 0.5}
    assert plan(client, started, {}, "img2img")["passes"].keys() == {"img2img"}


@pytest.mark.parametrize("strength", [0.0, 0.01, 0.5])
def test_a_picture_that_is_hardly_changed_has_a_plan_or_a_sentence(client, strength):
    request = {**SMALLER, "sampler_name": "DDIM", "denoising_strength": strength}
    said = []
    try:
        said += plan(client, request, {"deepcache": {"enabled": True}}, "img2img")["lines"]
    except ApiError as error:
        said += [error.body["detail"]] if error.status == 422 else []
    assert said
    assert "DDIM" in said[0] or "step" in said[0] or "the host can't begin this request" in said[0]


def test_wrong_input_is_one_sentence(client):
    for request, settings, words in [
        ({}, {"deepcache": {"cache_interval": 99}}, "deepcache.cache_interval"),
        ({"sampler_name": "Fastest"}, {}, "bad sampler name: Fastest"),
        ({"stepz": 3}, {}, "stepz"),
    ]:
        with pytest.raises(ApiError) as error:
            plan(client, request, settings)
        assert error.value.status == 422
        assert words in error.value.body["detail"]


@pytest.mark.parametrize("sampler", ["Euler a", "DPM++ SDE", "Restart", "DDIM"])
def test_a_generation_under_way_is_not_disturbed(client, baseline, sampler):
    request = {**SMALLER, "steps": 24, "sampler_name": sampler}
    settings = {"deepcache": {"enabled": True}}
    expected = client.txt2img(settings, **request)[0]
    stop, asked = threading.Event(), []

    def ask():
        while not stop.is_set():
            for other in ("Euler a", "DDIM", "Restart", "DPM++ 2M SDE"):
                asked.append(plan(client, {**request, "sampler_name": other, "steps": 30}, settings))

    asking = threading.Thread(target=ask)
    asking.start()
    made = client.txt2img(settings, **request)[0]
    stop.set()
    asking.join()
    assert len(asked) > 4
    assert made.infotext == expected.infotext
    assert (made.pixels == expected.pixels).all()
    client.post("/probe/off")
    assert comparable(client.state()) == comparable(baseline)
