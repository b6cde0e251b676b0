"""Training of the tiny VAE."""

from __future__ import annotations

import time

import torch
import torch.nn.functional as F

from . import data, networks
from .evaluate import ssim
from .scenes import scenes
from .train_unet import draw
from .train_vae import decode, encode, picture_loss
from .trainer import Run, Stage, Trainer, finish, lean, log

STORE = 3072  # latents from the UNet that the decoder learns from, and as many from the VAE's encoder


def train_tiny(run: Run, stage: Stage) -> None:
    """The tiny VAE of TAESD's layout: its decoder copies the VAE's pictures, its encoder the VAE's latents.

    Half of the decoder's latents are what the UNet draws: that is what it will decode, and the VAE's own latents are
    cleaner. A batch is halves of both.
    """
    vae = lean(run.network("vae", networks.vae()).to(memory_format=run.layout), run)
    model = networks.tiny_vae().to(run.device, memory_format=run.layout)
    half = stage.batch // 2

    def loss(images, mean, latents, target):
        out = model.decoder(latents)
        with torch.autocast(run.device.type, enabled=False):
            likeness = ssim(out.float() / 2 + 0.5, target / 2 + 0.5).mean()
        error = picture_loss(out, target) + 0.5 * (1 - likeness)
        deviation = networks.LATENT_DEVIATION
        return error + 0.1 * F.mse_loss(model.encoder(images).float() / deviation, mean / deviation), 1 - likeness

    images, mean, clean, drawn, targets = _store(run, vae)

    def batches():
        while True:
            one = torch.randint(len(clean), (half,), device=run.device)
            other = torch.randint(len(drawn), (half,), device=run.device)
            latents = torch.cat([clean[one], drawn[other]])
            target = torch.cat([targets[one], targets[len(clean) + other]])
            yield images[one].float(), mean[one], latents, target.float()

    trainer = Trainer("tiny", model, loss, stage, run)
    trainer.resume(run.state)
    finish(trainer, batches())


@torch.no_grad()
def _store(run: Run, vae) -> tuple[torch.Tensor, ...]:
    """images, mean and slightly noisy latents of them; drawn latents; targets of both kinds of latents in a row."""
    size, part, began = (4, 4, time.monotonic()) if run.toy else (STORE, 256, time.monotonic())
    unet = lean(run.network("unet", networks.unet()).to(memory_format=run.layout), run)
    text = run.network("text", networks.TextEncoders())
    images, mean, clean, drawn, targets = [], [], [], [], ([], [])
    for chunk, _ in zip(map(run.to_device, scenes(run.seed + 5, part, run.workers)), range(size // part), strict=False):
        picture = data.render(chunk["rows"]) * 2 - 1
        with run.autocast():
            context, pooled = text(chunk["ids"][:, 0].long())
            latents = draw(run, unet, context.float(), pooled.float(), steps=2 if run.toy else 24)
            middle = encode(vae, picture)
            noisy = middle + networks.latent_noise(middle, 0.2)
            for kept, some in zip(targets, (noisy, latents), strict=True):
                kept.append(decode(vae, some).clamp(-1, 1).half())
        images.append(picture.half())
        mean.append(middle)
        clean.append(noisy)
        drawn.append(latents)
    log.info("tiny: %d latents drawn and as many encoded in %.0f s", size, time.monotonic() - began)
    return tuple(map(torch.cat, (images, mean, clean, drawn, [*targets[0], *targets[1]])))
