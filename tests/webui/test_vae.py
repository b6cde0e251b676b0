"""Tiny VAE decoding through the host's own option, which is as it was afterwards."""

import contextlib

import numpy as np
import pytest

from .client import Client
from .live import CUTOFF, HIRES, SMALL, SMALLER, TINY, notes
from .test_live_plan import plan

OPTION = "sd_vae_decode_method"


@contextlib.contextmanager
def without_the_decoder(webui, case):
    """As on a machine that never fetched it, and that can't."""
    file = webui.models / "VAE-taesd" / "taesdxl_decoder.pth"
    away = file.with_suffix(".away")
    file.rename(away)
    case.post("/others/forget_tiny")
    try:
        yield
    finally:
        away.rename(file)


def test_the_servers_config_lacks_the_option(case):
    assert OPTION not in case.baseline["options"]


# The way through pixels at 64×64 differs in the last digits from one stock server to the next.
@pytest.mark.parametrize("request_", [{}, HIRES, {**HIRES, **SMALL, "hr_upscaler": "Lanczos"}, {"n_iter": 2}])
def test_it_is_the_hosts_own_tiny_decoding(case, stock_webui, request_):
    case.counts = False
    theirs = stock_webui.client
    theirs.options(**{OPTION: "TAESD"})
    for one, script in ((theirs, None), (case, TINY)):  # loading the decoder takes random numbers
        one.txt2img(script, **{**SMALLER, "steps": 1})
    theirs.post("/probe/seed")
    expected = theirs.txt2img(**{**SMALLER, **request_})
    theirs.options(**{OPTION: "Full"})
    theirs.post("/others/forget_option", name=OPTION)
    for picture, other in zip(case.txt2img(TINY, **{**SMALLER, **request_}), expected, strict=True):
        assert np.array_equal(picture.pixels, other.pixels)
        assert "VAE Decoder: TAESD" in picture.infotext


def test_full_wins_over_the_hosts_setting(case):
    case.counts = False
    expected = case.txt2img(**SMALLER)[0]
    Client.options(case, **{OPTION: "TAESD"})
    picture = case.txt2img({"vae": {"decoder": "full"}}, **SMALLER)[0]
    assert np.array_equal(picture.pixels, expected.pixels)
    assert case.state()["options"][OPTION] == "TAESD"
    case.post("/others/forget_option", name=OPTION)


@pytest.mark.parametrize("own", ["Full", "TAESD"])
def test_the_requests_own_setting_wins(case, own):
    """The host leaves an option that its config lacks at what a request set; so it is put back by hand here."""
    case.counts = False
    plain = case.txt2img(**SMALLER)[0]
    case.requests.clear()
    decoder = {"Full": "tiny", "TAESD": "full"}[own]
    picture = case.txt2img({"vae": {"decoder": decoder}}, **SMALLER, override_settings={OPTION: own})[0]
    case.requests.clear()
    case.post("/others/forget_option", name=OPTION)
    assert np.array_equal(picture.pixels, plain.pixels) == (own == "Full")
    assert f"the request's own setting {OPTION} = {own} is used" in notes(picture)
    case.txt2img(**SMALLER)


def test_without_the_file_the_full_vae_is_used(webui, case):
    case.counts = False
    plain = case.txt2img(**SMALLER)[0]
    with without_the_decoder(webui, case):
        picture = case.txt2img(TINY, **SMALLER)[0]
        assert np.array_equal(picture.pixels, plain.pixels)
        said = notes(picture)
        assert "Tiny VAE refused: taesdxl_decoder.pth is missing and could not be fetched" in said
        assert "the full VAE is used. Put it into" in said
        assert "VAE Decoder" not in picture.infotext.replace("SDXL Optim VAE decoder", "")
    again = case.txt2img(TINY, **SMALLER)[0]
    assert "VAE Decoder: TAESD" in again.infotext


@contextlib.contextmanager
def with_the_decoder_spoilt(webui, case, content: bytes):
    """As after a download that ended early, or that brought a page of an error."""
    file = webui.models / "VAE-taesd" / "taesdxl_decoder.pth"
    whole = file.read_bytes()
    file.write_bytes(content)
    case.post("/others/forget_tiny")
    try:
        yield
    finally:
        file.write_bytes(whole)
        case.post("/others/forget_tiny")


@pytest.mark.parametrize("content", [b"", b"<!DOCTYPE html>", b"PK\x03\x04"])
def test_a_spoilt_file_is_named_by_the_plan_and_by_the_report_and_the_rest_acts(webui, case, content):
    case.counts = False
    settings = {**TINY, **CUTOFF}
    plain = case.txt2img(CUTOFF, **SMALLER)[0]
    with with_the_decoder_spoilt(webui, case, content):
        foreseen = plan(case, SMALLER, settings)
        picture = case.txt2img(settings, **SMALLER)[0]
    said = "Tiny VAE refused: taesdxl_decoder.pth cannot be read"
    assert said in " ".join(foreseen["notes"])
    assert said in notes(picture)
    assert np.array_equal(picture.pixels, plain.pixels)


def test_a_plan_draws_no_random_number(webui, case):
    """The host encodes a hires pass's picture with noise of torch's global generator."""
    case.counts = False
    request = {**SMALLER, **HIRES, **SMALL, "hr_upscaler": "Lanczos"}
    pictures = []
    for planned in (False, True):
        (webui.models / "VAE-taesd" / "taesdxl_decoder.pth").touch()  # or else the plan knows the file by now
        case.post("/probe/seed")
        state = case.get("/probe/random")
        if planned:
            plan(case, SMALLER, TINY)
        assert case.get("/probe/random") == state
        pictures.append(case.txt2img(**request)[0])
    assert np.array_equal(pictures[0].pixels, pictures[1].pixels)
