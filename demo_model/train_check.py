"""Training of the caption check's classifier."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from . import check, data, networks
from .scenes import scenes
from .train_vae import decode, encode
from .trainer import ABSENT, Run, Stage, Trainer, finish, lean

STORE = 4096  # pictures at hand
REFRESH = 24  # steps between two chunks of new ones


def cell_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of [B, 9, sum(check.GROUPS)] logits with [B, 9, 5] labels (see `scenes.cell_labels`)."""
    present, *parts = logits.float().split(list(check.GROUPS.values()), -1)
    total = F.binary_cross_entropy_with_logits(present[..., 0], labels[..., 0].float())
    for i, part in enumerate(parts, 1):
        total = total + F.cross_entropy(part.flatten(0, 1), labels[..., i].flatten(), ignore_index=ABSENT)
    return total


def train_classifier(run: Run, stage: Stage) -> None:
    """The classifier, on rendered pictures, the VAE's copies of them, and noisy ones.

    One thing in twelve is nearly faded out and counts as absent.
    """
    vae = lean(run.network("vae", networks.vae()).to(memory_format=run.layout), run)
    model = check.Classifier().to(run.device)
    store = 8 if run.toy else STORE

    def loss(images, labels):
        total = cell_loss(model(images), labels)
        return total, total

    def batches():
        chunks = map(run.to_device, scenes(run.seed + 4, run.chunk // 4, run.workers))
        images = torch.empty(0, 3, data.SIZE, data.SIZE, dtype=torch.uint8, device=run.device)
        labels = torch.empty(0, 9, len(check.GROUPS), dtype=torch.int64, device=run.device)
        while True:
            while True:  # fill the store, then renew it while it is used
                new_images, new_labels = classifier_pictures(next(chunks), vae, run)
                images = torch.cat([new_images, images[:store]])
                labels = torch.cat([new_labels, labels[:store]])
                if len(images) > store:
                    break
            for _ in range(REFRESH):
                which = torch.randint(len(images), (stage.batch,), device=run.device)
                picked = images[which].float() / 255
                noise = 0.08 * torch.rand(len(picked), 1, 1, 1, device=run.device) ** 2
                yield (picked + noise * torch.randn_like(picked)).clamp(0, 1), labels[which]

    trainer = Trainer("classifier", model, loss, stage, run)
    trainer.resume(run.state)
    finish(trainer, batches())


@torch.no_grad()
def classifier_pictures(chunk: dict[str, torch.Tensor], vae, run: Run) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures, uint8, half of them the VAE's copies from slightly noisy latents; and their labels."""
    rows, labels = chunk["rows"].clone(), chunk["cells"].clone()
    alone = labels[..., 0].sum(1) == 1  # so that it is clear whose label goes
    faded = alone & (torch.rand(len(rows), device=run.device) < 1 / 12)
    fade = torch.rand(len(rows), device=run.device) * 0.3
    rows[:, data.BACKGROUND_FIELDS] = torch.where(faded, fade, rows[:, data.BACKGROUND_FIELDS])
    labels[..., 0] = labels[..., 0].masked_fill(faded[:, None], 0)
    labels[..., 1:] = labels[..., 1:].masked_fill(faded[:, None, None], ABSENT)
    images = data.render(rows) * 2 - 1
    half = len(images) // 2
    with run.autocast():
        latents = encode(vae, images[:half])
        latents += networks.latent_noise(latents, 0.25)
        copies = decode(vae, latents)
    images = torch.cat([copies, images[half:]]) / 2 + 0.5
    return (images.clamp(0, 1) * 255).round().byte(), labels
