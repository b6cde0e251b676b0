"""The table of Felix Sanz, *Ultimate guide to optimizing Stable Diffusion XL*: each optimisation by its name there.

https://www.felixsanz.dev/articles/ultimate-guide-to-optimizing-stable-diffusion-xl
"""

from __future__ import annotations

from sdxl_optim.bench.cases import Case, combination
from sdxl_optim.settings import Settings, overrides

STEPS, CFG = 50, 5.0  # the article's request: 1024×1024, Euler, no negative prompt
REFINER_STRENGTH = 0.3  # what the image-to-image pipeline does by itself


def _tf32(where: str, value: str) -> Settings:
    return overrides.apply(Settings(), {("memory", f"{where}_tf32"): value})


def article_cases() -> list[Case]:
    """All rows, in the article's order."""
    return [
        Case("Stock"),
        Case("FP32", change="fp32"),
        Case("cuDNN without TF32", _tf32("cudnn", "off")),
        Case("TF32", _tf32("matmul", "on"), change="fp32"),
        combination("model", "Model CPU offload"),
        combination("sequential", "Sequential CPU offload"),
        combination("staged", "Batch processing", together=True),
        combination("stable-fast", "Stable Fast"),
        combination("deepcache 3", "DeepCache"),
        combination("tensorrt", "TensorRT"),
        combination("inductor", "torch.compile"),
        combination("onediff", "OneDiff"),
        Case("Channels-last", change="channels-last"),
        combination("freeu", "FreeU"),
        Case("VAE FP16 fix", change="vae fp16 fix"),
        Case("VAE slicing", change="vae slicing"),
        combination("tiling", "VAE tiling"),
        combination("tiny", "Tiny VAE"),
        *(Case(f"{steps} steps", steps=steps) for steps in (30, 25, 20, 15)),
        combination("cutoff 0.75", "CFG off at 75 %"),
        combination("cutoff 0.5", "CFG off at 50 %"),
        *(
            Case(f"Refiner, {steps} steps, from {switch:.1f}", steps=steps, switch_at=switch)
            for steps in (50, 40, 30, 20)
            for switch in (0.9, 0.8)
        ),
        *(
            Case(f"Refiner, {steps} steps, image-to-image {more}", steps=steps, refiner_steps=more)
            for steps in (50, 40, 30, 20)
            for more in (20, 10)
        ),
        combination("onediff+tiny+cutoff 0.75", "OneDiff + Tiny VAE + CFG off at 75 % + 30 steps", steps=30),
        combination("tiny+cutoff 0.75", "Tiny VAE + CFG off at 75 % + 30 steps", steps=30),
        combination("tiny+cutoff 0.75+deepcache 3", "Tiny VAE + CFG off at 75 % + DeepCache + 30 steps", steps=30),
    ]
