"""Measure the demo model: `python -m demo_model.evaluate [--weights DIR] [--out DIR]`.

Held prompts drawn with diffusers (Euler, 30 steps) at CFG 5 and 1, the caption check on them and on shuffled captions,
the tiny decoder against the VAE, and the refiner's half of the schedule. Writes `figures.json`, `samples.jpg` and
`losses.png` to `--out`.
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
import random
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw

from . import captions, check, export

log = logging.getLogger("demo_model")
STEPS = 30


def pipeline(weights: Path, device: str):
    """The exported diffusers pipeline, as a user gets it, float32."""
    from diffusers import StableDiffusionXLPipeline

    with tempfile.TemporaryDirectory() as folder:
        export.write_diffusers(folder, weights)
        pipe = StableDiffusionXLPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


def latents_of(pipe, prompts: list[str], guidance_scale: float, batch: int) -> torch.Tensor:
    """One picture's latents a prompt, seeds 0, 1, 2, ...: [N, 4, 32, 32], as the pipeline returns them."""
    out = []
    for start in range(0, len(prompts), batch):
        part = prompts[start : start + batch]
        seeds = [torch.Generator("cpu").manual_seed(start + i) for i in range(len(part))]
        options = {
            "num_inference_steps": STEPS,
            "guidance_scale": guidance_scale,
            "height": 256,
            "width": 256,
        }
        out.append(pipe(part, generator=seeds, output_type="latent", **options).images)
    return torch.cat(out)


@torch.no_grad()
def decoded(vae, latents: torch.Tensor) -> torch.Tensor:
    """Pictures [N, 3, 256, 256], 0 to 1, on the CPU; latents as the UNet sees them."""
    parts = [vae.decode(part / vae.config.scaling_factor).sample for part in latents.split(8)]
    return (torch.cat(parts).float().cpu() / 2 + 0.5).clamp(0, 1)


@torch.no_grad()
def verdicts(classifier: check.Classifier, pictures: torch.Tensor, prompts: list[str]) -> list[check.Verdict]:
    logits = torch.cat([classifier(part) for part in pictures.split(16)])
    return [check.judge(check.see(row), captions.parse(p)[0]) for row, p in zip(logits, prompts, strict=True)]


def share(found: list[check.Verdict]) -> float:
    return sum(v.passed for v in found) / len(found)


def shuffled(prompts: list[str]) -> list[str]:
    """Each prompt at another's place: a fixed permutation without fixed points."""
    order = list(range(len(prompts)))
    random.Random(0).shuffle(order)
    turned = dict(zip(order, order[1:] + order[:1], strict=True))
    return [prompts[turned[i]] for i in range(len(prompts))]


def ssim(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """SSIM (Wang et al. 2004: Gaussian window of deviation 1.5 over 11 pixels) of [N, 3, H, W] in 0..1 -> [N]."""
    x = torch.arange(11, device=a.device) - 5.0
    line = torch.exp(-(x**2) / (2 * 1.5**2))
    line = (line / line.sum()).expand(a.shape[1], 1, 1, 11)

    def blur(z):
        return F.conv2d(F.conv2d(z, line, groups=len(line)), line.transpose(2, 3), groups=len(line))

    mean_a, mean_b = blur(a), blur(b)
    var_a, var_b, both = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2, blur(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    top = (2 * mean_a * mean_b + c1) * (2 * both + c2)
    return (top / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))).mean((1, 2, 3))


def classifier(weights: Path) -> check.Classifier:
    model = check.Classifier()
    model.load_state_dict({k: v.float() for k, v in export.load("classifier", weights).items()})
    return model.eval()


@torch.no_grad()
def refined(pipe, weights: Path, latents: torch.Tensor, prompts: list[str], batch: int) -> torch.Tensor:
    """The latents after the refiner's last 20 % of a schedule: noise added at that place and taken away."""
    from diffusers import StableDiffusionXLImg2ImgPipeline

    with tempfile.TemporaryDirectory() as folder:
        export.write_diffusers_refiner(folder, weights)
        refiner = StableDiffusionXLImg2ImgPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    refiner.set_progress_bar_config(disable=True)
    refiner.to(pipe.device)
    out = []
    for start in range(0, len(prompts), batch):
        part = slice(start, start + batch)
        options = {
            "strength": 0.2,
            "num_inference_steps": STEPS,
            "guidance_scale": 5.0,
            "output_type": "latent",
        }
        seeds = [torch.Generator("cpu").manual_seed(start + i) for i in range(len(prompts[part]))]
        out.append(refiner(prompts[part], image=latents[part], generator=seeds, **options).images)
    return torch.cat(out)


def sheet(pictures: torch.Tensor, found: list[check.Verdict], columns: int = 8, side: int = 128) -> Image.Image:
    """A contact sheet; pictures whose prompt failed the check have a red frame."""
    rows = -(-len(pictures) // columns)
    out = Image.new("RGB", (columns * side, rows * side))
    draw = ImageDraw.Draw(out)
    for i, (picture, verdict) in enumerate(zip(pictures, found, strict=True)):
        image = Image.fromarray((picture.permute(1, 2, 0) * 255).round().byte().numpy())
        x, y = i % columns * side, i // columns * side
        out.paste(image.resize((side, side), Image.Resampling.LANCZOS), (x, y))
        if not verdict.passed:
            draw.rectangle((x, y, x + side - 1, y + side - 1), outline=(255, 0, 0), width=3)
    return out


def loss_chart(path: Path):
    """matplotlib's figure of the training losses: a panel a stage, loss on a logarithmic scale over steps."""
    from matplotlib.figure import Figure

    curves: dict[str, list[tuple[float, float]]] = {}
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            curves.setdefault(row["stage"], []).append((float(row["step"]), float(row["loss"])))
    lines = -(-len(curves) // 3)
    figure = Figure((9, 1.9 * lines), layout="constrained")
    panels = figure.subplots(lines, 3, squeeze=False).flat
    for axes, (stage, points) in zip(panels, curves.items(), strict=False):
        axes.semilogy(*zip(*points, strict=True))
        axes.set_title(f"{stage}, {points[-1][0]:.0f} steps", fontsize="medium")
    for axes in panels[len(curves) :]:
        axes.set_visible(False)
    return figure


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m demo_model.evaluate", description=__doc__.split("\n")[0])
    parser.add_argument("--weights", type=Path, default=export.WEIGHTS)
    parser.add_argument("--out", type=Path, default=Path("demo-figures"))
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=16)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    options.out.mkdir(parents=True, exist_ok=True)
    prompts, judge = captions.held_prompts(options.prompts), classifier(options.weights)
    pipe = pipeline(options.weights, options.device)
    began = time.monotonic()
    latents = latents_of(pipe, prompts, 5.0, options.batch)
    seconds = (time.monotonic() - began) / len(prompts)
    pictures = decoded(pipe.vae, latents)
    found = verdicts(judge, pictures, prompts)
    unguided = decoded(pipe.vae, latents_of(pipe, prompts, 1.0, options.batch))
    figures = {
        "prompts": len(prompts),
        "pass at CFG 5": share(found),
        "pass at CFG 1": share(verdicts(judge, unguided, prompts)),
        "pass with shuffled captions": share(verdicts(judge, pictures, shuffled(prompts))),
        "seconds a picture at CFG 5": round(seconds, 2),
    }
    sheet(pictures, found).save(options.out / "samples.jpg", quality=90)
    sheet(unguided, verdicts(judge, unguided, prompts)).save(options.out / "unguided.jpg", quality=90)
    if (options.weights / "tiny.safetensors").is_file():
        tiny = export.tiny_vae(options.weights).to(options.device)
        likeness = ssim(decoded(tiny, latents), pictures)
        figures |= {"tiny decoder's SSIM, mean": likeness.mean().item(), "least": likeness.min().item()}
    if (options.weights / "refiner.safetensors").is_file():
        after = decoded(pipe.vae, refined(pipe, options.weights, latents, prompts, options.batch))
        figures |= {"pass after the refiner": share(verdicts(judge, after, prompts))}
        figures |= {"refiner's SSIM to the base, mean": ssim(after, pictures).mean().item()}
        sheet(after, verdicts(judge, after, prompts)).save(options.out / "refined.jpg", quality=90)
    if (options.weights / "losses.csv").is_file():
        loss_chart(options.weights / "losses.csv").savefig(options.out / "losses.png", dpi=100)
    (options.out / "figures.json").write_text(json.dumps(figures, indent=2) + "\n", "utf-8")
    sys.stdout.write(json.dumps(figures, indent=2) + "\n")
    for prompt, verdict in zip(prompts, found, strict=True):
        if not verdict.passed:
            log.info("%s -> %s", prompt, verdict)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
