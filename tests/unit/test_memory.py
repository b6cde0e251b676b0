"""Offload and fp8 on modules alone: the work is the same to the last bit, and nothing is left afterwards.

On the CPU "the device" is other main memory: everything is moved, and can be watched moving.
"""

from itertools import pairwise

import numpy as np
import pytest
import torch
from ldm_unet import random_inputs, tiny_unet
from torch import nn

from sdxl_optim.backends.call.foreign_hooks import why_not_capturable
from sdxl_optim.hosts.standalone.generate import Models, Request, generate
from sdxl_optim.hosts.standalone.tiny import tiny_base
from sdxl_optim.settings import Settings, from_dict
from sdxl_optim.techniques.memory import fp8
from sdxl_optim.techniques.memory.offload.meter import Meter
from sdxl_optim.techniques.memory.offload.mover import SPARE_BYTES, Mover
from sdxl_optim.techniques.memory.offload.part import UNET
from sdxl_optim.techniques.memory.offload.piece import Arena, Piece, split, tensors_of
from sdxl_optim.techniques.memory.offload.policy import SLOTS
from sdxl_optim.techniques.memory.offload.streamed import spread
from sdxl_optim.techniques.tf32.patch import tf32

MODES = ["staged", "model", "sequential"]


class Text(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(50, 24)
        self.position = nn.Parameter(torch.randn(7, 24))
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(24, 2, 48, batch_first=True) for _ in range(3))

    def forward(self, tokens):
        x = self.table(tokens) + self.position
        for layer in self.layers:
            x = layer(x)
        return x


class Vae(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.Conv2d(3, 4, 8, stride=8), nn.ConvTranspose2d(4, 3, 8, stride=8)

    def forward(self, z):
        return self.decoder(z)


class FixedMeter(Meter):
    """A device of `limit` bytes, of which the mover's own are taken."""

    def __init__(self, limit: int | None):
        super().__init__("cpu")
        self.size, self.mover = limit, None

    def limit(self):
        return self.size

    def used(self):
        return self.mover.bytes_on_device()


def make_parts() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    parts = {"text encoders": Text(), "unet": tiny_unet(), "vae": Vae()}
    return {name: part.eval().requires_grad_(False) for name, part in parts.items()}


@torch.no_grad()
def work(parts) -> list[torch.Tensor]:
    """What a generation does with the parts, in its order."""
    unet = parts["unet"]
    text = parts["text encoders"](torch.arange(7)[None])
    results = [text]
    for step in range(3):
        results.append(unet(*random_inputs(unet.config, size=(8, 8), seed=step).args))
    return [*results, parts["vae"](results[-1])]


def state_of(parts) -> list:
    return [
        (name, key, t.dtype, t.stride(), t.clone())
        for name, part in parts.items()
        for key, t in part.state_dict().items()
    ]


def same(a: list, b: list) -> bool:
    return len(a) == len(b) and all(x[:4] == y[:4] and torch.equal(x[4], y[4]) for x, y in zip(a, b, strict=True))


def hooks_on(parts) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for part in parts.values() for m in part.modules())


def opened(parts, mode: str, limit: int | None = None) -> Mover:
    meter = FixedMeter(limit)
    meter.mover = mover = Mover(parts, "cpu", mode, meter)
    return mover


@pytest.fixture(scope="module")
def expected():
    return work(make_parts())


@pytest.mark.parametrize("mode", MODES)
def test_the_work_is_the_same_and_nothing_is_left(mode, expected):
    parts = make_parts()
    before, hooks = state_of(parts), hooks_on(parts)
    mover = opened(parts, mode)
    for _ in range(2):
        assert all(torch.equal(a, b) for a, b in zip(work(parts), expected, strict=True))
    mover.close()
    assert same(state_of(parts), before)
    assert hooks_on(parts) == hooks
    storages = [t.untyped_storage().data_ptr() for part in parts.values() for t in tensors_of(part)]
    assert len(set(storages)) == len(storages)  # each has memory of its own again
    assert all(torch.equal(a, b) for a, b in zip(work(parts), expected, strict=True))


@pytest.mark.parametrize(
    ("mode", "inside"),
    [
        ("model", {"text encoders": {"text encoders"}, "unet": {"unet"}, "vae": {"vae"}}),
        ("staged", {name: {"text encoders", "unet", "vae"} for name in ("text encoders", "unet", "vae")}),
        ("sequential", {"text encoders": {"text encoders"}, "unet": {"unet"}, "vae": {"vae"}}),
    ],
)
def test_which_part_is_where(mode, inside, expected):
    parts = make_parts()
    mover, seen = opened(parts, mode), {}
    for name in parts:
        last = mover.parts[name].pieces[-1].module
        last.register_forward_hook(
            lambda *_, name=name: seen.update({name: {n for n, p in mover.parts.items() if p.on_device}})
        )
    work(parts)
    assert seen == inside
    assert all(p.flat is None for name in mover.parts if name not in inside["vae"] for p in mover.parts[name].pieces)


@pytest.mark.parametrize("part", [0.2, 0.5, 0.8])
def test_staged_keeps_to_its_budget(part, expected):
    parts = make_parts()
    mover = opened(parts, "staged")
    unet = mover.parts["unet"]
    mover.meter.size = limit = int(unet.nbytes * part) + SLOTS * unet.largest + SPARE_BYTES
    most = []
    for piece in unet.pieces:
        piece.module.register_forward_hook(lambda *_: most.append(mover.bytes_on_device()))
    assert all(torch.equal(a, b) for a, b in zip(work(parts), expected, strict=True))
    assert max(most) <= limit - SPARE_BYTES
    assert 0 < unet.streamed.nbytes < unet.nbytes or not unet.on_device
    mover.close()


class MeasuringMeter(FixedMeter):
    """A UNet call needs `need` bytes beside the weights, wherever they are."""

    def __init__(self, limit: int, need: int):
        super().__init__(limit)
        self.measures, self.need, self.since = True, need, 0

    def reset(self):
        self.since = self.used()

    def peak(self):
        return self.since + self.need


def test_staged_learns_what_a_call_needs(expected):
    """The first call is careful; from the second on as much of the UNet stays as there is room for."""
    parts = make_parts()
    meter = MeasuringMeter(0, need=50_000)
    meter.mover = mover = Mover(parts, "cpu", "staged", meter, guess={UNET: 10_000_000})
    meter.size = 10_000_000 + mover.parts[UNET].nbytes
    streamed = []
    mover.parts[UNET].pieces[-1].module.register_forward_hook(lambda *_: streamed.append(mover.bytes_streamed[UNET]))
    assert all(torch.equal(a, b) for a, b in zip(work(parts), expected, strict=True))
    assert streamed[0] > 0
    meter.size += SPARE_BYTES
    work(parts)
    assert streamed[-1] == 0
    mover.close()


def test_sequential_holds_two_pieces_and_fetches_ahead(expected):
    parts = make_parts()
    mover = opened(parts, "sequential")
    unet, ahead, most = mover.parts["unet"], [], 0

    def watch(module, args):
        piece = next(p for p in unet.pieces if p.module is module)
        after = unet.streamed.next_after(piece)
        ahead.append(after is not None and after.flat is not None)
        nonlocal most
        most = max(most, sum(p.nbytes for p in unet.pieces if p.flat is not None))

    for piece in unet.pieces:
        piece.module.register_forward_pre_hook(watch)
    work(parts)
    assert most <= SLOTS * unet.largest
    per_call = len(unet.pieces)
    assert sum(ahead[per_call:]) >= 2 * per_call - 3  # from the second call on, the next piece is always on its way
    mover.close()


@pytest.mark.parametrize("mode", MODES)
def test_what_lora_writes_is_kept(mode):
    """The host's LoRA changes weights in place while their layer runs, and may bring a bias along."""
    parts, stock = make_parts(), make_parts()
    mover = opened(parts, mode, limit=100_000 if mode == "staged" else None)
    for one in (parts, stock):
        layer = one["unet"].input_blocks[4][1].transformer_blocks[0].attn1.to_q
        handle = layer.register_forward_pre_hook(merge)
        work(one)
        handle.remove()
    again = work(parts)
    assert all(torch.equal(a, b) for a, b in zip(again, work(stock), strict=True))
    mover.close()
    assert same(state_of(parts), state_of(stock))


def merge(layer, args) -> None:
    layer.weight.mul_(1.5)


@pytest.mark.parametrize("mode", MODES)
def test_an_error_in_the_middle_does_no_harm(mode, expected):
    parts = make_parts()
    mover = opened(parts, mode)
    work(parts)
    handle = parts["unet"].middle_block[1].register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        work(parts)
    handle.remove()
    assert all(torch.equal(a, b) for a, b in zip(work(parts), expected, strict=True))
    mover.close()
    assert hooks_on(parts) == 0


def test_a_model_that_was_thrown_away_stays_so():
    parts = make_parts()
    mover = opened(parts, "staged")
    work(parts)
    for part in parts.values():
        part.to("meta")
    mover.close()
    assert all(t.is_meta for part in parts.values() for t in tensors_of(part))
    assert hooks_on(parts) == 0


@pytest.mark.parametrize("mode", MODES)
def test_the_host_may_move_and_load_meanwhile(mode, expected):
    parts, other = make_parts(), make_parts()
    mover = opened(parts, mode)
    work(parts)
    for part in other.values():
        for tensor in part.parameters():
            tensor.mul_(1.01)
    for name, part in parts.items():
        for tensor in part.parameters():
            tensor.data = tensor.data.clone()  # what .to(device) does
        part.load_state_dict(other[name].state_dict())
    mover.resync()
    assert all(torch.equal(a, b) for a, b in zip(work(parts), work(other), strict=True))
    parts["vae"].half().float()
    mover.resync()
    work(parts)
    mover.close()


def test_skipped_blocks_cost_no_transfer():
    """DeepCache's cached calls run a few blocks alone."""

    def skip(h, *args, **kwargs):
        return h[:, :16]

    parts = make_parts()
    mover = opened(parts, "sequential")
    work(parts)
    unet = parts["unet"]
    skipped = [*unet.input_blocks[1:], unet.middle_block, *unet.output_blocks[:-1]]
    fetched = []
    inner = {id(m) for block in skipped for m in block.modules()}
    for piece in mover.parts["unet"].pieces:
        piece.module.register_forward_pre_hook(lambda m, args: fetched.append(id(m)))
    for block in skipped:
        block.forward = skip
    with torch.no_grad():
        unet(*random_inputs(unet.config, size=(8, 8)).args)
    assert not inner.intersection(fetched)


def test_split_leaves_what_torch_defines_whole():
    module = nn.Sequential(nn.MultiheadAttention(8, 2), nn.Linear(8, 8))
    pieces, loose = split(module, limit=1)
    assert pieces == [module[0], module[1]]
    assert loose == []
    text = Text()
    pieces, loose = split(text, limit=1)
    assert [type(p) for p in pieces] == [nn.Embedding, *[nn.TransformerEncoderLayer] * 3]
    assert loose[0] is text.position


def test_a_piece_keeps_strides_and_shares_nothing():
    conv = nn.Conv2d(8, 8, 3).to(memory_format=torch.channels_last)
    value, stride = conv.weight.detach().clone(), conv.weight.stride()
    piece = Piece(conv, Arena(pinned=False))
    buffer = torch.empty(piece.nbytes + 1000, dtype=torch.uint8)
    piece.prefetch(buffer)
    assert torch.equal(conv.weight, value)  # which may be on its way still
    piece.onload()
    assert conv.weight.data_ptr() == buffer.data_ptr()
    assert conv.weight.stride() == stride
    piece.offload()
    buffer.fill_(255)
    assert torch.equal(conv.weight, value)
    piece.release(torch.device("cpu"))
    assert conv.weight.stride() == stride


def test_what_stays_is_asked_for_no_more(expected):
    """Hooks cost time at each call: those of pieces that stay are gone once they have arrived, until they leave."""
    parts = make_parts()
    mover = opened(parts, "staged")
    every = hooks_on(parts)
    work(parts)
    assert hooks_on(parts) <= every - 2 * (len(mover.parts[UNET].pieces) - 1)
    mover.offload()
    assert hooks_on(parts) == every
    assert all(torch.equal(a, b) for a, b in zip(work(parts), expected, strict=True))
    mover.close()
    assert hooks_on(parts) == 0


def test_few_large_pieces_pass_through_rather_than_many():
    mover = opened(make_parts(), "staged")
    unet = mover.parts[UNET]
    unet.onload(unet.nbytes * 9 // 10)
    assert unet.streamed.nbytes >= unet.nbytes // 10
    assert all(piece.nbytes >= unet.largest // 4 for piece in unet.streamed.pieces)
    mover.close()


def test_spread():
    assert spread([10] * 10, 0) == set()
    assert spread([10] * 10, 100) == set(range(10))
    assert len(spread([10] * 10, 50)) == 5
    assert all(b - a == 2 for a, b in pairwise(sorted(spread([10] * 10, 50))))
    assert spread([1, 100, 1], 500) == {0, 1, 2}


def test_backends_that_capture_see_that_weights_move():
    parts = make_parts()
    assert why_not_capturable(parts["unet"]) is None
    mover = opened(parts, "staged")
    assert "sdxl_optim.techniques.memory" in why_not_capturable(parts["unet"])
    assert why_not_capturable(parts["unet"], before_undo=True) is None
    mover.close()
    weights = fp8.Fp8Weights(parts["unet"])
    assert "sdxl_optim.techniques.memory" in why_not_capturable(parts["unet"])
    assert why_not_capturable(parts["unet"], before_undo=True) is None
    weights.close()
    assert why_not_capturable(parts["unet"]) is None


# --- fp8


def test_fp8_halves_or_quarters_the_weights_and_is_undone():
    unet = make_parts()["unet"]
    before = state_of({"unet": unet})
    stock = run(unet)
    weights = fp8.Fp8Weights(unet)
    layer = unet.input_blocks[4][1].transformer_blocks[0].attn1.to_q
    assert layer.weight.dtype == torch.float8_e4m3fn
    low = run(unet)
    assert layer.weight.dtype == torch.float8_e4m3fn
    assert not torch.equal(low, stock)
    assert (low - stock).norm() / stock.norm() < 0.2
    weights.close()
    assert same(state_of({"unet": unet}), before)
    assert hooks_on({"unet": unet}) == 0
    assert torch.equal(run(unet), stock)


@torch.no_grad()
def run(unet):
    return unet(*random_inputs(unet.config, size=(8, 8)).args)


def test_fp8_computes_with_the_rounded_weights():
    layer = nn.Linear(8, 8)
    rounded = layer.weight.data.to(torch.float8_e4m3fn).float()
    x = torch.randn(3, 8)
    expected = nn.functional.linear(x, rounded, layer.bias)
    weights = fp8.Fp8Weights(nn.Sequential(layer))
    with torch.no_grad():
        assert torch.equal(layer(x), expected)
        handle = layer.register_forward_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            layer(x)
        handle.remove()
        assert torch.equal(layer(x), expected)
    assert layer.weight.dtype == torch.float8_e4m3fn
    weights.close()


def test_fp8_merges_from_the_originals():
    """A small change to rounded weights would be lost. The very call that merges computes with what is stored."""
    layer, wanted, merged = nn.Linear(64, 64), [0.0], [0.0]
    original = layer.weight.detach().clone()

    def merge(one):
        one.weight.copy_(original + wanted[0])
        merged[0] = wanted[0]

    def rounded(weight):
        return nn.functional.linear(x, weight.to(torch.float8_e4m3fn).float(), layer.bias)

    weights = fp8.Fp8Weights(nn.Sequential(layer), pending=lambda one: merged != wanted, merge=merge)
    x = torch.randn(3, 64)
    with torch.no_grad():
        for wanted[0] in (0.0, 1e-3, 0.0):
            assert torch.equal(layer(x), rounded(original + wanted[0]))
            assert torch.equal(layer(x), rounded(original + wanted[0]))
    weights.close()
    assert torch.equal(layer.weight, original)


def test_what_does_not_fit_fp8_stays():
    layer = nn.Linear(2, 2)
    layer.weight.data[0, 0] = 1000
    weights = fp8.Fp8Weights(nn.Sequential(layer))
    assert layer.weight.dtype == torch.float32
    assert weights.skipped == 1
    weights.close()


@pytest.mark.parametrize("mode", MODES)
def test_fp8_and_offload_together(mode):
    parts, alone = make_parts(), make_parts()
    before = state_of(parts)
    weights = [fp8.Fp8Weights(one["unet"]) for one in (parts, alone)]
    mover = opened(parts, mode)
    assert all(torch.equal(a, b) for a, b in zip(work(parts), work(alone), strict=True))
    mover.close()
    for one in weights:
        one.close()
    assert same(state_of(parts), before)


def test_tf32_is_put_back():
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32

    def fail():
        with tf32("off", "on"):
            assert (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32) == (False, True)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert before == (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32)


# --- the standalone host


def test_diffusers_casts_to_fp8_and_back():
    pipe = tiny_base()
    pipe.set_progress_bar_config(disable=True)
    before = state_of({"unet": pipe.unet})
    models = Models(pipe)
    request = Request("a fox", steps=2)
    stock = generate(models, request, Settings())
    low = generate(models, request, from_dict({"memory": {"weights": "fp8", "offload": "model"}}))
    assert not np.array_equal(np.asarray(low.images[0]), np.asarray(stock.images[0]))
    assert low.report.memory.happened() == ["UNet in fp8"]
    assert [str(note) for note in low.report.notes if note.feature == "Memory offload"] == [
        "Memory offload refused: there is no GPU here whose memory it could save"
    ]
    assert same(state_of({"unet": pipe.unet}), before)
    again = generate(models, request, Settings())
    assert np.array_equal(np.asarray(again.images[0]), np.asarray(stock.images[0]))


@pytest.mark.parametrize("mode", MODES)
def test_way_is_made_for_what_is_no_part(mode, expected):
    parts = make_parts()
    mover = opened(parts, mode)
    work(parts)
    mover.reserve(1)
    if mode == "staged":  # there is no bound
        assert all(part.on_device for part in mover.parts.values())
        mover.meter.size = mover.bytes_on_device() + SPARE_BYTES
        mover.reserve(100_000)
        assert mover.bytes_on_device() <= mover.meter.size - SPARE_BYTES - 100_000
        assert any(part.on_device for part in mover.parts.values())
        mover.meter.size = None
    else:
        assert mover.bytes_on_device() == 0
    assert all(torch.equal(a, b) for a, b in zip(work(parts), expected, strict=True))
    mover.close()
