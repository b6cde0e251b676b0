"""How a picture of 1024×1024 decoded in tiles compares with the same decoded at once: SSIM, and where it is lost.

    python benchmarks/tiles.py --out FOLDER [--no-random] [--small]

Two VAEs: the demo model's (trained, 64 channels at each level, so its group norms are of two channels a group), which
decodes encoded scenes, drawn at that size or small ones side by side; and diffusers' AutoencoderKL in SDXL's sizes with
random weights (128 to 512 channels), which decodes noise. Tiles are those of `vae.tiling`, with norms of their own
(`vae.tile_norms: tile`) and of the picture scaled down (`picture`). Beside them the same tiles with every group norm's
statistics taken from the picture decoded at once, which is the most that `picture` can reach: what is lost there is
lost at the seams and to attention.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from pathlib import Path

import torch
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from demo_model import data, export, networks  # noqa: E402
from demo_model.evaluate import ssim  # noqa: E402
from sdxl_optim.techniques.vae.norms import norms_with, reduced, statistics_of  # noqa: E402
from sdxl_optim.techniques.vae.tiling import tiled_decode  # noqa: E402

SDXL_VAE = {
    "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2, "latent_channels": 4, "sample_size": 1024,
}  # fmt: skip
TILES = (512, 768)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def scenes(side: int, small: int) -> torch.Tensor:
    """[1, 3, side, side] in -1..1: one scene of that size, or several of `small` pixels side by side."""
    rng = random.Random(3)
    count = (side // small) ** 2
    drawn = [data.rasterise(data.sample_dense(rng), rng) for _ in range(count)]
    pictures = data.render(torch.stack([torch.from_numpy(rows) for rows, _ in drawn]), small) * 2 - 1
    rows = pictures.view(side // small, side // small, *pictures.shape[1:])
    return rows.permute(2, 0, 3, 1, 4).reshape(1, 3, side, side)


@torch.no_grad()
def compare(vae, latents: torch.Tensor) -> dict[str, float]:
    """SSIM to the picture decoded at once, by size of tile in pixels."""
    decode = lambda z: vae.decoder(vae.post_quant_conv(z))  # noqa: E731
    unit = lambda x: (x.float() / 2 + 0.5).clamp(0, 1)  # noqa: E731
    began = time.perf_counter()
    whole = unit(decode(latents))
    row = {"seconds_whole": time.perf_counter() - began, "deviation": float(whole.std())}
    of_the_whole = statistics_of(vae.decoder, lambda: decode(latents))
    for tile in TILES:
        if tile >= latents.shape[-1] * 8:
            continue
        ways = {
            "tile": lambda _: {},
            "picture": lambda side: statistics_of(vae.decoder, lambda: decode(reduced(latents, side, 1))),
            "of_the_whole": lambda _: of_the_whole,
        }
        for way, statistics in ways.items():
            began = time.perf_counter()
            with norms_with(statistics(tile // 8)):
                tiled = unit(tiled_decode(decode, latents, tile // 8))
            row[f"seconds_{tile}_{way}"] = time.perf_counter() - began
            row[f"ssim_{tile}_{way}"] = float(ssim(tiled, whole))
    return row


@torch.no_grad()
def demo_cases(side: int) -> dict[str, tuple]:
    vae = networks.vae()
    vae.load_state_dict({key: value.float() for key, value in export.load("vae").items()})
    vae.eval().to(DEVICE)
    cases = {}
    for name, small in (("one scene", side), ("4 scenes", side // 2), ("16 scenes", side // 4)):
        cases[f"demo VAE, trained, {name}"] = vae, vae.encode(scenes(side, small).to(DEVICE)).latent_dist.mean
    return cases


def random_cases(side: int) -> dict[str, tuple]:
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    vae = AutoencoderKL(**SDXL_VAE).eval().to(DEVICE, torch.float16 if DEVICE == "cuda" else torch.float32)
    noise = torch.randn(1, 4, side // 8, side // 8)
    smooth = nn.functional.interpolate(torch.randn(1, 4, 8, 8), size=noise.shape[-2:], mode="bicubic")
    dtype = next(vae.parameters()).dtype
    kinds = {"noise": noise, "smooth latents": smooth + noise / 4}
    return {f"SDXL's VAE, random weights, {name}": (vae, z.to(DEVICE, dtype)) for name, z in kinds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--no-random", action="store_true", help="the demo model's VAE alone")
    parser.add_argument("--small", action="store_true", help="a trial: 640×640")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    result = {"device": torch.cuda.get_device_name() if DEVICE == "cuda" else "cpu"}
    side = 640 if args.small else 1024
    for cases in (demo_cases, *(() if args.no_random else (random_cases,))):
        for name, (vae, latents) in cases(side).items():
            result[name] = compare(vae, latents)
            sys.stdout.write(f"{name}: " + ", ".join(f"{k} {v:.4f}" for k, v in result[name].items()) + "\n")
            sys.stdout.flush()
            (args.out / "tiles.json").write_text(json.dumps(result, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
