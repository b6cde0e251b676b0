"""Where the weights are: each mode with everything else, and afterwards nothing of it."""

import numpy as np
import pytest

from .client import Client
from .live import CUTOFF, DEEPCACHE, FREEU, HIRES, SMALLER, TINY, error_of, notes
from .server import SETTINGS, device
from .test_techniques import noise

ON_CARD = device() == "cuda"
BUDGET = 0.1  # GB: not all of the tiny model's parts and what their work needs
OFFLOADS = ("staged", "staged in little", "model", "sequential")
LORA = {"prompt": "a fox <lora:tiny-lora:1>"}
REFINER = {"refiner_checkpoint": "tiny-sdxl-refiner.safetensors", "refiner_switch_at": 0.5}
FP8 = {"memory": {"weights": "fp8"}}


def offload(mode: str, **more) -> dict:
    name, *little = mode.split(" in ")
    budget = {"budget": BUDGET} if little else {}
    return {"memory": {"offload": name, **budget, **more}}


def check_places(script: dict | None, seen: list[dict]) -> None:
    """At the end of each stage that the probe saw, each part of the model is where this offload says."""
    memory = (script or {}).get("memory", {})
    mode, budget = memory.get("offload", "host"), memory.get("budget", 0)
    owner = {"encode": "text encoders", "denoise": "unet", "decode": "vae decoder", "encode picture": "vae encoder"}
    for entry in seen:
        on_card = {name: places.get("cuda", 0) for name, places in entry["parts"].items()}
        sizes = {name: sum(places.values()) for name, places in entry["parts"].items()}
        assert mode == "host" or entry["ours"], f"{mode}: the host runs a model that is not in its place: {entry}"
        if not ON_CARD:
            assert not any(on_card.values())
            continue
        own = owner[entry["stage"]]
        others = {name: n for name, n in on_card.items() if name[:3] != own[:3]}
        if mode in ("host", "model") or own[:3] == "vae" or (mode == "staged" and own == "unet" and not budget):
            assert on_card[own] == sizes[own], f"{own} works, but not all of it is on the card: {entry}"
        if mode in ("model", "sequential"):  # a module's own parameters, which belong to no piece, stay
            assert all(n < 0.02 * sizes[name] for name, n in others.items()), f"{mode}: {entry}"
        if mode == "sequential" and own == "unet":
            assert on_card[own] < 0.25 * sizes[own], f"{entry}"
        if mode == "staged" and budget:
            assert sum(on_card.values()) < budget * 1e9, f"{entry}"
        if mode == "staged" and budget and own == "unet":  # the text encoders have made room
            assert on_card["text encoders"] < 0.1 * sizes["text encoders"], f"{entry}"
        if mode == "host":
            assert on_card == sizes, f"{entry}"


@pytest.fixture(scope="session")
def stock_checksums(stock_webui):
    """Of the stock server's weights, without and with the LoRA."""
    client = stock_webui.client
    found = {}
    for name, request in (("lora", LORA), ("plain", {})):
        client.txt2img(**{**SMALLER, **request})
        found[name] = client.get("/probe/checksum")
    return found


@pytest.fixture
def case(case, stock_checksums):
    """Before and after, with no LoRA in force, every weight is as on the stock server, in its dtype and on its device;
    and in every stage of each generation each part was where it should be."""
    case.counts = False
    case.txt2img(**SMALLER)
    before = case.get("/probe/checksum")
    assert before == stock_checksums["plain"]
    generate = case.generate

    def watched(kind, script, request):
        case.post("/places/watch")
        try:
            return generate(kind, script, request)
        finally:
            check_places(script, case.get("/places/seen"))
            case.post("/places/off")

    case.generate = watched
    yield case
    del case.generate
    case.post("/places/off")
    case.post("/probe/off")
    if case.changed:
        Client.options(case, **{name: SETTINGS[name] for name in case.changed})
    case.txt2img(**SMALLER)
    assert case.get("/probe/checksum") == before


def picture(case, script, **request):
    return case.txt2img(script, **{**SMALLER, **request})[0].pixels


def equal(a, b) -> bool:
    return np.array_equal(a, b)


@pytest.mark.parametrize("mode", OFFLOADS)
def test_the_picture_is_the_same_and_stays_so(case, mode):
    stock = picture(case, None)
    for _ in range(2):
        assert equal(picture(case, offload(mode)), stock)
    made = case.txt2img(offload(mode), **SMALLER)[0]
    assert ("there is no GPU here" in notes(made)) != ON_CARD


def test_it_is_refused_while_another_extension_runs_the_unet_and_no_longer(case):
    case.counts = False
    for unet in ("[probe] foreign", "None"):
        case.options(sd_unet=unet)
        for _ in range(2):  # the host exchanges the UNet in the middle of the first
            made = case.txt2img(offload("staged"), **SMALLER)[0]
            assert ("Memory offload refused: the UNet is run by" in notes(made)) == (unet != "None")
            placed = "sdxl_optim.techniques.memory" in str(case.get("/probe/state")["hooks"])
            assert placed == (unet == "None")


@pytest.mark.parametrize("script", [FP8, *map(offload, OFFLOADS)], ids=["fp8", *OFFLOADS])
def test_the_weights_with_a_lora_are_those_of_stock_afterwards(case, stock_checksums, script):
    picture(case, script, **LORA)
    picture(case, None, **LORA)
    assert case.get("/probe/checksum") == stock_checksums["lora"]
    picture(case, script)
    picture(case, None)
    assert case.get("/probe/checksum") == stock_checksums["plain"]


REQUESTS = {
    "hires": HIRES,
    "hires by pixels": {**HIRES, "hr_upscaler": "Lanczos"},
    "lora": LORA,
    "refiner": REFINER,
    "batches": {"batch_size": 2, "n_iter": 2},
}


@pytest.mark.parametrize("mode", OFFLOADS)
@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS)
def test_with_what_the_host_offers(case, mode, request_):
    stock = picture(case, None, **request_)
    assert equal(picture(case, offload(mode), **request_), stock)


@pytest.mark.parametrize("mode", OFFLOADS)
def test_a_refiner_that_the_host_keeps_in_memory(case, mode):
    """It is taken up again without being loaded, and so is the base after it."""
    case.options(sd_checkpoints_limit=2)
    request = {**REFINER, "n_iter": 2}
    stock = picture(case, None, **request)
    for _ in range(2):
        assert equal(picture(case, offload(mode), **request), stock)


@pytest.mark.parametrize("mode", ["staged in little", "sequential"])
def test_a_hires_checkpoint_that_the_host_keeps_in_memory(case, mode):
    """Its VAE encodes the picture and its text encoders the prompts before the sampler runs."""
    case.options(sd_checkpoints_limit=2)
    request = {**HIRES, "hr_upscaler": "Lanczos", "hr_checkpoint_name": "tiny-sdxl-b.ckpt"}
    picture(case, None, **request)  # which loads it: the host's own next picture is a little different
    stock = picture(case, None, **request)
    for _ in range(2):
        assert equal(picture(case, offload(mode), **request), stock)


@pytest.mark.parametrize("mode", OFFLOADS)
@pytest.mark.parametrize("mask", [None, np.pad(np.full((32, 32), 255, np.uint8), 16)], ids=["img2img", "inpainting"])
def test_img2img(case, mode, mask):
    image = noise()[:64, :64]
    stock = case.img2img(image, None, mask=mask, **SMALLER)[0].pixels
    assert equal(case.img2img(image, offload(mode), mask=mask, **SMALLER)[0].pixels, stock)


def test_with_every_technique(case):
    script = {**FREEU, **CUTOFF, **DEEPCACHE, **TINY}
    made = picture(case, script)
    for mode in OFFLOADS:
        assert equal(picture(case, {**script, **offload(mode)}), made)


@pytest.mark.parametrize("mode", OFFLOADS)
def test_a_checkpoint_is_switched_while_it_is_in_place(case, mode):
    picture(case, offload(mode))
    case.options(sd_model_checkpoint="tiny-sdxl-b.ckpt")
    other = picture(case, offload(mode))
    assert equal(picture(case, None), other)
    picture(case, offload(mode))
    case.options(sd_model_checkpoint="tiny-sd15.safetensors")
    assert equal(picture(case, offload(mode)), picture(case, None))


@pytest.mark.parametrize("mode", OFFLOADS)
@pytest.mark.parametrize(
    ("where", "kind", "after"),
    [("unet", "runtime", 5), ("unet", "interrupt", 5), ("vae", "runtime", 0), ("vae", "oom", 0)],
)
def test_whatever_ends_it(case, mode, where, kind, after):
    stock = picture(case, None)
    case.fault(where, kind, after=after)
    if kind == "interrupt":
        picture(case, offload(mode))
    else:
        assert "probe fault" in str(error_of(lambda: picture(case, offload(mode))))
    assert equal(picture(case, offload(mode)), stock)


def test_fp8_with_lora_and_off_one_after_the_other(case):
    plain, with_lora = picture(case, None), picture(case, None, **LORA)
    low = picture(case, FP8)
    low_lora = picture(case, FP8, **LORA)
    assert not equal(low, plain)
    assert not equal(low_lora, low)
    assert equal(picture(case, FP8), low)
    picture(case, FP8, **LORA)
    assert equal(picture(case, None, **LORA), with_lora)  # fp8 off, LoRA still on
    assert equal(picture(case, None), plain)
    picture(case, None, **LORA)
    assert equal(picture(case, FP8, **LORA), low_lora)  # on while LoRA is merged


def test_fp8_with_offload_and_a_refiner(case):
    low, refined = picture(case, FP8), picture(case, FP8, **REFINER)
    for mode in OFFLOADS:
        both = offload(mode, weights="fp8")
        assert equal(picture(case, both), low)
        assert equal(picture(case, both, **REFINER), refined)
        assert equal(picture(case, both), low)


@pytest.mark.parametrize("script", [FP8, offload("sequential")], ids=["fp8", "sequential"])
def test_fp8_and_an_error(case, script):
    expected = picture(case, script)
    case.fault("unet", "runtime", after=5)
    error_of(lambda: picture(case, script))
    assert equal(picture(case, script), expected)


# --- the VAE


def test_a_nan_of_the_vae_is_decoded_again(case):
    right = picture(case, {"vae": {"precision": "fp32"}})
    assert equal(right, picture(case, None))
    for tiling in (False, True):
        case.fault("vae in half", "nans")
        made = case.txt2img({"vae": {"precision": "bf16", "tiling": tiling}}, **SMALLER)[0]
        assert notes(made).count("gave a NaN") == 1
        assert case.post("/probe/off") == {"unspent_faults": 0}
        assert equal(made.pixels, right)


@pytest.mark.skipif(not ON_CARD, reason="the CPU does not compute in fp16")
@pytest.mark.parametrize("tiling", [False, True])
def test_a_nan_of_fp16_is_decoded_again(case, tiling):
    right = picture(case, {"vae": {"precision": "bf16"}})
    case.fault("vae in half", "nans")
    made = case.txt2img({"vae": {"precision": "fp16", "tiling": tiling}}, **SMALLER)[0]
    assert notes(made).count("gave a NaN") == 1
    assert case.post("/probe/off") == {"unspent_faults": 0}
    assert equal(made.pixels, right)


def test_tiles(case):
    wide = {"width": 512, "height": 256, "steps": 2}
    script = {"vae": {"tiling": True, "tile_size": 256}}
    whole, tiled = (case.txt2img(s, **wide)[0].pixels for s in (None, script))
    assert tiled.shape == whole.shape == (256, 512, 3)
    assert not equal(tiled, whole)
    assert equal(picture(case, script), picture(case, None))  # which is smaller than a tile
    image = np.tile(noise(), (2, 4, 1))[:256, :512]
    case.img2img(image, script, **wide)
    of_picture = {"vae": {**script["vae"], "tile_norms": "picture"}}
    nearer = case.txt2img(of_picture, **wide)[0].pixels
    far, near = (float(np.abs(pixels.astype(float) - whole).mean()) for pixels in (tiled, nearer))
    assert near < far  # not by much: this VAE's weights are random
    assert equal(picture(case, of_picture), picture(case, None))
    case.img2img(image, of_picture, **wide)


@pytest.mark.skipif(ON_CARD, reason="a card computes in fp16")
def test_precision_is_refused_by_name(case):
    made = case.txt2img({"vae": {"precision": "fp16"}}, **SMALLER)[0]
    assert "the CPU does not compute in fp16" in notes(made)
