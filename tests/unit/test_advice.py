"""The advice: a table of machines, and that nothing is guessed."""

import pytest

from sdxl_optim.settings import presets
from sdxl_optim.settings.advice import GIB, Machine, advise

SDXL = {"device": "cuda", "kind": "sdxl", "checkpoint": "sd_xl_base_1.0", "attention": "sdp"}
BALANCED = "choose the preset balanced"


def card(gib, **more) -> Machine:
    return Machine(memory=int(gib * GIB), **{**SDXL, **more})


@pytest.mark.parametrize(
    ("machine", "expected"),
    [
        (Machine(), []),
        (Machine(device="cuda"), []),
        (Machine(device="cuda", kind="sdxl"), []),
        (Machine(kind="sdxl", checkpoint="sd_xl_base_1.0"), []),
        (Machine(device="cpu"), ["Without a graphics card of CUDA's every step counts: choose the preset fastest."]),
        (card(24), [f"The card has 24 GiB: {BALANCED}, or fast where details may change a little."]),
        (card(6, kind="sd1"), [f"The card has 6 GiB: {BALANCED}, or fast where details may change a little."]),
        (
            card(24, checkpoint="sdxl_lightning_4step"),
            [
                "sdxl_lightning_4step makes its pictures in a few steps, going by its name: leave the presets off,"
                " and at CFG scale 1 switch CFG cutoff on."
            ],
        ),
    ],
)
def test_the_choice(machine, expected):
    assert advise(machine) == expected


@pytest.mark.parametrize(("gib", "name"), [(4, "vram-4gb"), (6, "vram-6gb"), (8, "vram-8gb"), (12, None)])
def test_the_memory_presets_are_advised_where_they_exist(gib, name, monkeypatch):
    made = tuple(presets.Preset(n, "") for n in ("vram-8gb", "vram-6gb", "vram-4gb"))
    monkeypatch.setattr(presets.known, "built_in", made)
    text = f"choose the preset {name or 'balanced'}"
    assert text in advise(card(gib))[0]
    if name:
        monkeypatch.setattr(presets.known, "built_in", ())
        assert BALANCED in advise(card(gib))[0]
        monkeypatch.setattr(presets.known, "built_in", made)
        assert name not in advise(card(gib, medvram=True))[0]
        assert name not in advise(card(gib, host_offloads=True))[0]


@pytest.mark.parametrize(
    ("more", "start"),
    [
        ({"lowvram": True}, "--lowvram takes many times as long"),
        ({"medvram": True}, "--medvram takes about 1.5 times as long, and is not needed with 24 GiB"),
        ({"no_half": True, "no_half_vae": True}, "--no-half computes at double the size"),
        ({"no_half_vae": True}, "--no-half-vae takes 2 GiB more to decode"),
        ({"attention": "Doggettx"}, "Attention is computed by Doggettx, which is slower than sdp"),
    ],
)
def test_flags_in_the_way(more, start):
    sentences = [*map(str, advise(card(24, **more)))]
    assert len(sentences) == 2
    assert str(sentences[1]).startswith(start)


def test_flags_that_are_right_are_left_alone():
    assert len(advise(card(6, medvram=True))) == 1
    assert len(advise(card(24, attention="xformers"))) == 1
    assert len(advise(Machine(device="cpu", no_half=True, no_half_vae=True, attention="InvokeAI"))) == 1
