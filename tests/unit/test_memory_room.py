"""Who makes room for whom: parts of SDXL's sizes on a device of so many bytes, whose allocator is a model of torch's.

Each byte of weights in main memory stands for SCALE on the device. What a call takes beside weights was recorded from
SDXL's UNet and VAE at 1024×1024 on the meta device, in full size.
"""

import functools

import ldm_unet
import pytest
import torch
from allocator import CachingAllocator, Recorder
from diffusers import AutoencoderKL
from torch import nn
from torch.nn import functional as F

from sdxl_optim.techniques.memory.offload import mover as mover_module
from sdxl_optim.techniques.memory.offload import resident as resident_module
from sdxl_optim.techniques.memory.offload.copy_stream import CopyStream
from sdxl_optim.techniques.memory.offload.meter import Meter
from sdxl_optim.techniques.memory.offload.mover import Mover
from sdxl_optim.techniques.memory.offload.part import TEXT, UNET, VAE

_STORAGE = torch.empty(1)
pytestmark = pytest.mark.skipif(
    _STORAGE.untyped_storage() is not _STORAGE.untyped_storage(),
    reason="this torch makes a storage's Python object anew each time, so that its end can't be recorded",
)

SCALE = 1024
MB, GB = 10**6, 10**9
CALLS = 4


class Sized(nn.Module):
    """A layer that is known by nothing but its size."""

    def __init__(self, nbytes: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(nbytes // SCALE, dtype=torch.uint8), requires_grad=False)
        self.weight.random_()

    def forward(self, work):
        work(self)


class Chain(nn.Module):
    def __init__(self, sizes):
        super().__init__()
        self.layers = nn.ModuleList(Sized(size) for size in sizes)

    def forward(self, work):
        for layer in self.layers:
            layer(work)


class Coder(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = Sized(68 * MB), Sized(99 * MB)
        self.post_quant_conv = Sized(8 * SCALE)  # a call by itself, before the decoder's


def unet_sizes(half: bool) -> list[int]:
    """SDXL's UNet in fp16, 5.1 GB: residual blocks and transformer blocks."""

    def res(c: int, out: int) -> int:
        return 2 * (9 * c * out + 9 * out * out + 1280 * out)

    def attention(width: int, depth: int) -> list[int]:
        return [2 * width**2, *[2 * (18 * width**2 + 2 * 2048 * width)] * depth, 2 * width**2]

    sizes = [8 * MB, res(320, 320), res(320, 320), 2 * MB]
    sizes += [res(320, 640), *attention(640, 2), res(640, 640), *attention(640, 2), 7 * MB]
    sizes += [res(640, 1280), *attention(1280, 10), res(1280, 1280), *attention(1280, 10)]
    sizes += [res(1280, 1280), *attention(1280, 10), res(1280, 1280)]
    for before in (2560, 2560, 1920):
        sizes += [res(before, 1280), *attention(1280, 10)]
    sizes += [29 * MB]
    for before in (1920, 1280, 960):
        sizes += [res(before, 640), *attention(640, 2)]
    sizes += [7 * MB, res(960, 320), res(640, 320), res(640, 320)]
    return [size // 2 if half else size for size in sizes]


class Work:
    """Bytes taken until the object is gone."""

    def __init__(self, allocator: CachingAllocator, size: float):
        self._block = allocator.new(int(size))
        self._allocator = allocator

    def __del__(self):
        if hasattr(self, "_allocator"):
            self._allocator.give_back(self._block)


@functools.cache
def recorded() -> tuple[list, list]:
    """Events of a UNet call with two rows and of a decode, both in half precision."""
    with pytest.MonkeyPatch.context() as patch, torch.device("meta"), torch.no_grad():
        patch.setattr(F, "scaled_dot_product_attention", lambda q, *args, **kwargs: torch.empty_like(q))
        patch.setattr(ldm_unet.CrossAttention, "forward", fused)
        unet = ldm_unet.UNetModel(ldm_unet.SDXL).half()
        unet.time_embed.register_forward_pre_hook(lambda module, args: (args[0].half(),))
        blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
        vae = AutoencoderKL(latent_channels=4, block_out_channels=(128, 256, 512, 512), layers_per_block=2, **blocks)
        vae = vae.half()
        with Recorder(unet, workspace=0.5) as call:
            sizes = (2, 4, 128, 128), (2,), (2, 77, 2048), (2, 2816)
            unet(*(torch.empty(size, dtype=torch.float16) for size in sizes))
        with Recorder(vae, workspace=1.0) as decode:
            vae.decoder(torch.empty(1, 4, 128, 128, dtype=torch.float16))
    return call.events, decode.events


def fused(self, x, context=None):
    """CrossAttention.forward without a matrix of scores."""
    context = x if context is None else context
    q, _, _ = self.to_q(x), self.to_k(context), self.to_v(context)
    return self.to_out(F.scaled_dot_product_attention(q))


class RoomMeter(Meter):
    """Of weights in main memory."""

    def __init__(self, allocator: CachingAllocator, budget: float):
        super().__init__("cpu", budget)
        self.allocator, self.measures, self.high = allocator, True, 0

    def limit(self):
        return int(self.budget * GB) // SCALE

    def used(self):
        return self.allocator.allocated // SCALE

    def peak(self):
        return self.allocator.peak // SCALE

    def reset(self):
        self.high = max(self.high, self.allocator.peak)
        self.allocator.peak = self.allocator.allocated


class RoomCopies(CopyStream):
    def __init__(self, allocator: CachingAllocator):
        super().__init__("cpu")
        self._allocator = allocator

    def release_cached_blocks(self):
        self._allocator.empty_cache()

    def allocate(self, nbytes):
        return self._allocator.tensor(nbytes, SCALE)


class Card:
    """A generation as the mover sees it, where no more than `budget` GB may be reserved."""

    def __init__(self, budget: float, mode: str = "staged", fp8: bool = False):
        self.allocator, self.budget, self.fp8 = CachingAllocator(int(budget * GB)), budget, fp8
        self.parts = {
            TEXT: Chain([76 * MB, *[14 * MB] * 12, 127 * MB, *[39 * MB] * 32]),
            UNET: Chain(unet_sizes(half=fp8)),
            VAE: Coder(),
        }
        self.loose = Work(self.allocator, 20 * MB)
        self.meter, self.copies = RoomMeter(self.allocator, budget), RoomCopies(self.allocator)
        self.guess = {UNET: 700 * MB // SCALE, TEXT: 150 * MB // SCALE, VAE: 2_550 * MB // SCALE}
        self.mover = Mover(self.parts, "cpu", mode, self.meter, self.guess, self.copies)
        self.inside: dict[str, dict[str, float]] = {}  # GB of each part while another one works
        self.size, self.tried_again = 1.0, 0
        self.taken: dict[int, Work] = {}

    def take(self, megabytes: float) -> Work:
        return Work(self.allocator, megabytes * MB)

    def picture(self, hires: bool = False, encoded: bool = False) -> float:
        """Returns the GB that were copied to the device. hires: a second pass at 1.5 times the sides, decoded in tiles.
        encoded: from a picture, which takes less than half of what decoding it does."""
        before = self.copies.bytes_copied
        self.size = 1.0
        self.mover.begin_pass(self.size, self.guess, self.budget)
        if encoded:
            self.parts[VAE].encoder(lambda layer: self.take(900))
        self.parts[TEXT](self.text_layer)
        self.note(TEXT)
        kept = self.take(1.3), self.take(1.1)  # prompts and latents
        for self.size in (1.0, 2.25)[: 1 + hires]:
            self.mover.begin_pass(self.size, self.guess, self.budget)
            for _ in range(CALLS):
                self.taken, self.layer = {}, 0
                self.parts[UNET](self.unet_layer)
                self.note(UNET)
            self.parts[VAE].post_quant_conv(self.check)
            self.parts[VAE].decoder(self.decode_somehow)
            self.note(VAE)
        del kept
        return (self.copies.bytes_copied - before) * SCALE / GB

    def note(self, part: str) -> None:
        self.inside[part] = {name: p.bytes_on_device * SCALE / GB for name, p in self.mover.parts.items()}

    def check(self, layer: Sized) -> None:
        """Its weights are on the device."""
        pieces = (p for part in self.mover.parts.values() for p in part.pieces)
        piece = next(p for p in pieces if p.module is layer)
        assert piece.flat is not None
        assert layer.weight.data_ptr() == piece.flat.data_ptr()

    def text_layer(self, layer) -> None:
        self.check(layer)
        work = [self.take(8), self.take(4)]
        del work

    def unet_layer(self, layer) -> None:
        self.check(layer)
        cast = self.take(26 if self.fp8 else 1)
        events, count = recorded()[0], len(self.parts[UNET].layers)
        self.replay(events[len(events) * self.layer // count : len(events) * (self.layer + 1) // count], self.size)
        self.layer += 1
        del cast

    def replay(self, events, size: float) -> None:
        for number, nbytes in events:
            if nbytes:
                self.taken[number] = self.take(nbytes * size / MB)
            else:
                del self.taken[number]

    def decode_somehow(self, layer) -> None:
        try:
            self.decode(layer)
            return
        except torch.cuda.OutOfMemoryError:
            self.tried_again += 1
        assert self.mover.free_others()
        self.decode(layer)

    def decode(self, layer) -> None:
        self.check(layer)
        out = self.take(6)
        self.taken.clear()
        self.replay(recorded()[1], 1.0)
        del out


@pytest.fixture(autouse=True)
def scaled(monkeypatch):
    monkeypatch.setattr(resident_module, "GROUP_BYTES", resident_module.GROUP_BYTES // SCALE)
    monkeypatch.setattr(mover_module, "SPARE_BYTES", mover_module.SPARE_BYTES // SCALE)


BUDGETS = [(6.9, False), (5.6, False), (3.6, True), (3.6, False)]


@pytest.mark.parametrize(("budget", "fp8"), BUDGETS)
def test_the_budget_holds_and_no_more_is_moved_than_it_takes(budget, fp8):
    """The budget is a hard cap of what the allocator reserves."""
    card = Card(budget, fp8=fp8)
    moved = [card.picture() for _ in range(7)]
    assert card.meter.high <= budget * GB
    assert max(moved[3:]) == min(moved[3:])  # it has settled
    assert card.tried_again == 0
    weights = sum(part.nbytes for part in card.mover.parts.values()) * SCALE / GB
    assert moved[-1] < weights - (budget - 3.7) + CALLS * card.mover.bytes_streamed[UNET] * SCALE / GB + 0.6
    assert (card.mover.bytes_streamed[UNET] > 0) == (budget * GB < card.mover.parts[UNET].nbytes * SCALE + 0.6 * GB)


@pytest.mark.parametrize(("budget", "fp8"), BUDGETS)
def test_sizes_may_change_between_calls(budget, fp8):
    card = Card(budget, fp8=fp8)
    for hires in (False, True, False, True, True):
        card.picture(hires)
    assert card.meter.high <= budget * GB
    moved = [card.picture(hires) for hires in (False, True, False, True)]
    assert moved[:2] == pytest.approx(moved[2:], abs=1.0)


def test_what_encoding_takes_does_not_stand_for_decoding():
    card = Card(6.9)
    for _ in range(3):
        card.picture(encoded=True)
    assert card.tried_again == 0


def test_where_all_fits_nothing_moves_after_the_first_picture():
    card = Card(24.0)
    assert card.picture() == pytest.approx(sum(part.nbytes for part in card.mover.parts.values()) * SCALE / GB)
    assert card.picture(hires=True) == 0


def test_the_end_of_the_unet_makes_room_for_the_decoder_and_is_back_before_it_is_needed():
    card = Card(6.9)
    for _ in range(3):
        card.picture()
    unet = card.mover.parts[UNET]
    there = [piece.flat is not None for piece in unet.pieces]
    kept = there.index(False)
    assert kept > 0
    assert not any(there[kept:])
    copied = []
    card.copies.copy, copy = lambda piece, buffer: (copied.append(piece), copy(piece, buffer))[1], card.copies.copy
    card.picture()
    order = [unet.pieces.index(piece) for piece in copied if piece in unet.pieces]
    assert order == sorted(order)


def test_memory_that_is_missing_though_planned_with():
    """Somebody else has taken it: the others go home, and what stays of the UNet gets less."""
    card = Card(5.6)
    card.picture()
    card.allocator.cap -= int(1.2 * GB)
    card.mover.offload()
    other = card.take(1000)
    card.meter.used = lambda: 0
    card.parts[UNET](lambda layer: card.check(layer))
    assert 0 < card.mover.parts[UNET].bytes_on_device * SCALE < 3.5 * GB
    del other
