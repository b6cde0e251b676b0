"""Training of the VAE, and what other stages make with it."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from . import data, networks
from .scenes import scenes
from .trainer import Run, Stage, Trainer, compiled, finish, lean

KL = 3e-4  # of the loss


def edges(x: torch.Tensor) -> torch.Tensor:
    """Differences between neighbouring pixels, right and down, one after the other."""
    return torch.cat([(x[..., 1:] - x[..., :-1]).flatten(1), (x[..., 1:, :] - x[..., :-1, :]).flatten(1)], 1)


def picture_loss(out: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Absolute and squared error of [B, 3, H, W] in -1..1, of their edges, and of their colours at large."""
    out = out.float()
    colours = F.l1_loss(F.avg_pool2d(out, 16), F.avg_pool2d(target, 16))
    return F.l1_loss(out, target) + F.mse_loss(out, target) + F.l1_loss(edges(out), edges(target)) + colours


def dense_pictures(run: Run, seed: int, batch: int) -> Iterator[torch.Tensor]:
    """Rendered pictures [B, 3, 256, 256] in -1..1 that are full of things, endlessly."""
    for chunk in map(run.to_device, scenes(seed, 4 * batch, run.workers, dense=True)):
        yield from (data.render(chunk["rows"]) * 2 - 1).split(batch)


def train_vae(run: Run, stage: Stage) -> None:
    """The 8x VAE; afterwards its latents are scaled, so that SDXL's factor gives them LATENT_DEVIATION.

    It learns from whole pictures: its normalisations look at the whole picture, and on windows they see another one.
    """
    model = lean(networks.vae().to(run.device, memory_format=run.layout), run)

    def forward(target, noise):
        mean, logvar = model.quant_conv(model.encoder(target)).float().chunk(2, 1)
        logvar = logvar.clamp(-20, 10)
        out = model.decoder(model.post_quant_conv(mean + (0.5 * logvar).exp() * noise))
        return out, mean, logvar

    def loss(target, noise):
        out, mean, logvar = made(target, noise)
        kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean()
        error = picture_loss(out, target)
        return error + KL * kl, error

    def batches():
        for target in dense_pictures(run, run.seed + 2, stage.batch):
            yield target, torch.randn(len(target), 4, data.SIZE // 8, data.SIZE // 8, device=run.device)

    def change(tensors):
        model.load_state_dict(tensors)
        chunk = run.to_device(next(scenes(run.seed + 3, 4 if run.toy else 512, 0)))
        return scaled(model, data.render(chunk["rows"]) * 2 - 1)

    trainer = Trainer("vae", model, loss, stage, run)
    trainer.resume(run.state)
    stream = batches()
    made = compiled(forward, next(stream), model, run)
    finish(trainer, stream, change)


@torch.no_grad()
def scaled(model, sample: torch.Tensor) -> dict[str, torch.Tensor]:
    """The VAE's state with each latent channel shifted and scaled to mean 0, LATENT_DEVIATION / SCALING_FACTOR."""
    latents = torch.cat([model.quant_conv(model.encoder(part)).chunk(2, 1)[0] for part in sample.split(32)])
    mean = latents.mean((0, 2, 3)).cpu()
    scale = (networks.LATENT_DEVIATION / networks.SCALING_FACTOR / latents.std((0, 2, 3))).cpu()
    state = {k: v.detach().float().cpu().clone() for k, v in model.state_dict().items()}
    weight, bias = state["quant_conv.weight"], state["quant_conv.bias"]
    weight[:4] *= scale[:, None, None, None]
    bias[:4] = (bias[:4] - mean) * scale
    bias[4:] += 2 * scale.log()
    weight, bias = state["post_quant_conv.weight"], state["post_quant_conv.bias"]
    bias += weight[:, :, 0, 0] @ mean
    weight /= scale[None, :, None, None]
    return state


@torch.no_grad()
def encode(vae, images: torch.Tensor, part: int = 64) -> torch.Tensor:
    """Pictures in -1..1 -> sampled latents as the UNet sees them [B, 4, 32, 32]."""
    out = []
    for piece in images.split(part):
        mean, logvar = vae.quant_conv(vae.encoder(piece)).float().chunk(2, 1)
        out.append(mean + (0.5 * logvar.clamp(-30, 20)).exp() * torch.randn_like(mean))
    return torch.cat(out) * networks.SCALING_FACTOR


@torch.no_grad()
def decode(vae, latents: torch.Tensor, part: int = 64) -> torch.Tensor:
    """Latents as the UNet sees them -> pictures in -1..1, float32."""
    pieces = (latents / networks.SCALING_FACTOR).split(part)
    return torch.cat([vae.decoder(vae.post_quant_conv(piece)).float() for piece in pieces])
