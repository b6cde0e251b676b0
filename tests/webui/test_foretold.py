"""What the report refuses, the live plan has said before: every technique, memory, VAE, attention and torch's switches
included."""

import json
import random
import re

import pytest

from .client import ApiError
from .live import SMALLER
from .test_live_plan import NO_LORA, lists, plan, random_settings  # noqa: F401  (a fixture)

OPTION = "sd_vae_decode_method"
REQUESTS, PARTS = 100, 10
NOTES = re.compile(r'SDXL Optim notes: ("(?:[^"\\]|\\.)*"|[^,\n]*)')


@pytest.fixture(scope="module", autouse=True)
def as_before(webui, baseline):
    """The host leaves an option that its config lacks at what a request set; nothing else is left."""
    yield
    client = webui.client
    client.txt2img(None, **SMALLER)  # offload and fp8 stay until then
    client.post("/others/forget_option", name=OPTION)
    assert client.state() == baseline


def all_settings(rng) -> dict:
    """Everything that can be asked for, but what compiles for minutes on a CPU."""
    settings = random_settings(rng)
    settings["vae"] = {
        "decoder": rng.choice(["host", "full", "tiny"]),
        "precision": rng.choice(["host", "auto", "fp16", "bf16", "fp32"]),
        "tiling": rng.random() < 0.4,
        "tile_size": rng.choice([256, 512, 1024]),
        "tile_norms": rng.choice(["tile", "picture"]),
    }
    settings["memory"] = {
        "offload": rng.choice(["host", "host", "staged", "model", "sequential"]),
        "budget": rng.choice([0.0, 0.5, 6.9]),
        "weights": rng.choice(["host", "host", "fp8"]),
        "cudnn_tf32": rng.choice(["host", "on", "off"]),
        "matmul_tf32": rng.choice(["host", "on", "off"]),
    }
    settings["backend"] = {
        "name": rng.choice(["eager", "cudagraph", "onediff", "stable-fast", "tensorrt"]),
        "attention": rng.choice(["host", "sdpa"]),
        "fp16_accumulation": rng.random() < 0.5,
    }
    return settings


def any_request(rng, samplers) -> dict:
    request = {
        **SMALLER,
        "prompt": rng.choice(NO_LORA),
        "steps": rng.randint(1, 6),
        "sampler_name": rng.choice([*samplers, "Euler", "Euler", "DPM adaptive"]),
        "cfg_scale": rng.choice([1.0, 5.0]),
    }
    if rng.random() < 0.2:
        request |= {"enable_hr": True, "hr_scale": 1.5, "hr_upscaler": "Latent", "denoising_strength": 0.6}
    if rng.random() < 0.2:
        request["override_settings"] = {OPTION: rng.choice(["Full", "TAESD"])}
    return request


def notes_of(infotext: str) -> str:
    """What the picture's infotext says was refused or is to be said."""
    found = NOTES.search(infotext)
    if found is None:
        return ""
    return json.loads(found[1]) if found[1].startswith('"') else found[1].strip()


def left_of(notes: str, foretold: list[str]) -> str:
    """What the report says beyond the plan."""
    for note in sorted(foretold, key=len, reverse=True):
        notes = notes.replace(note, "", 1)
    return notes


def test_a_refusal_that_was_not_foretold_would_be_seen():
    notes = 'FreeU refused: one, two; DeepCache note: "x"'
    assert notes_of(f"Steps: 8, SDXL Optim notes: {json.dumps(notes)}, Version: 1") == notes
    assert "refused: " not in left_of(notes, ["FreeU refused: one, two"])
    assert "refused: " in left_of(notes, ["FreeU refused: one"]) or "two" in left_of(notes, ["FreeU refused: one"])
    assert "FreeU refused" in left_of(notes, [])


@pytest.mark.parametrize("part", range(PARTS))
def test_the_plans_notes_are_the_reports_refusals(client, lists, part):  # noqa: F811
    rng = random.Random(2000 + part)
    done = refused = 0
    while done < REQUESTS // PARTS:
        settings, request = all_settings(rng), any_request(rng, lists[0])
        what = f"{request} {settings}"
        foretold = plan(client, request, settings)["notes"]
        try:
            made = client.txt2img(settings, **request)[0]
        except ApiError:  # some samplers fail with few steps; then they do so without the extension
            with pytest.raises(ApiError):
                client.txt2img(None, **request)
            continue
        done += 1
        refused += len(foretold)
        notes = notes_of(made.infotext)
        for note in foretold:
            assert note in notes, f"foretold and not in the report: {note}; {what}"
        assert "refused: " not in left_of(notes, foretold), f"{notes}; foretold: {foretold}; {what}"
    assert refused > done
