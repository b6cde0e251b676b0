"""Tiled decoding and encoding: bounded, seamless, and the same as diffusers' where both lay the same tiles."""

import pytest
import torch
from diffusers import AutoencoderKL

from sdxl_optim.techniques.vae.tiling import count_tiles, tile_starts, tiled_decode, tiled_encode


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    widths = {"block_out_channels": (8, 8, 16, 16), "layers_per_block": 1, "norm_num_groups": 4}
    vae = AutoencoderKL(sample_size=128, **blocks, **widths).eval()
    assert (vae.tile_latent_min_size, vae.tile_sample_min_size, vae.tile_overlap_factor) == (16, 128, 0.25)
    vae.enable_tiling()
    return vae


@pytest.mark.parametrize(("height", "width"), [(16, 24), (24, 40), (41, 35), (33, 19), (20, 64)])
@torch.no_grad()
def test_decode_agrees_with_diffusers(vae, height, width):
    z = torch.randn(2, 4, height, width)
    theirs = vae.tiled_decode(z).sample
    ours = tiled_decode(lambda part: vae.decoder(vae.post_quant_conv(part)), z, 16)
    ours, theirs = kept(ours, height, width, 8), kept(theirs, height, width, 8)
    assert torch.allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(16, 24), (24, 40), (41, 35)])
@torch.no_grad()
def test_encode_agrees_with_diffusers(vae, height, width):
    x = torch.rand(1, 3, 8 * height, 8 * width) * 2 - 1
    theirs = vae._tiled_encode(x)
    ours = tiled_encode(lambda part: vae.quant_conv(vae.encoder(part)), x, 16)
    ours, theirs = kept(ours, height, width, 1), kept(theirs, height, width, 1)
    assert torch.allclose(ours, theirs, atol=1e-5)


def kept(picture: torch.Tensor, height: int, width: int, scale: int) -> torch.Tensor:
    """Without what lies in the last tile of diffusers where ours has left that one out as redundant."""
    for dim, length in ((-2, height), (-1, width)):
        diffusers_last = range(0, length, 12)[-1]
        if diffusers_last not in tile_starts(length, 16):
            picture = picture.narrow(dim, 0, diffusers_last * scale)
    return picture


def test_no_tile_is_redundant():
    assert tile_starts(16, 16) == [0]
    assert tile_starts(28, 16) == [0, 12]
    assert tile_starts(29, 16) == [0, 12, 24]
    assert count_tiles(512, 512, 64) == 121  # 4096×4096 pixels in tiles of 512


@pytest.mark.parametrize("size", [(13, 16), (64, 64), (37, 50)])
def test_what_needs_no_neighbours_is_the_same_in_tiles(size):
    z = torch.randn(1, 4, *size)

    def grow(part):
        return part[:, :3].repeat_interleave(8, -1).repeat_interleave(8, -2)

    assert torch.allclose(tiled_decode(grow, z, 16), grow(z), atol=1e-6)

    def shrink(part):
        return torch.nn.functional.avg_pool2d(part, 8)

    x = torch.randn(1, 3, 8 * size[0], 8 * size[1])
    assert torch.allclose(tiled_encode(shrink, x, 16), shrink(x), atol=1e-6)


def test_no_tile_is_larger_than_asked_for():
    seen = []

    def decode(part):
        seen.append(part.shape[-2:])
        return part.repeat_interleave(8, -1).repeat_interleave(8, -2)

    tiled_decode(decode, torch.randn(1, 4, 70, 90), 32)
    assert len(seen) == count_tiles(70, 90, 32)
    assert max(max(shape) for shape in seen) == 32
