"""Training of the UNet and of the refiner, and drawing with them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import nn

from . import check, data, networks, tokenizer
from .scenes import CAPTIONS, scenes
from .train_check import cell_loss
from .train_vae import encode
from .trainer import Run, Stage, Trainer, compiled, finish, lean, log

POOL = {"unet": 65536, "refiner": 16384}  # latents at hand
REFRESH = 32  # steps between two chunks of new ones
REFINER_TIMESTEPS = 400  # the refiner learns the timesteps below this
NOISY = 0.5  # half of the timesteps are drawn from all, half from the noisier ones behind this share of them
SNR = (0.02, 5.0)  # of latents to noise: where the loss counts as much as the picture's own error times this
TELL = 0.01  # of the loss: what the middle of the UNet tells of the picture
TOLD = 0.6  # the share of the stage over which that fades


def alphas(device) -> torch.Tensor:
    """The cumulated alphas of SDXL's schedule, float32 [1000]."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return (1 - betas).cumprod(0).float().to(device)


class LatentPool:
    """Latents with their captions' embeddings, micro-conditioning and labels, refreshed while they are used."""

    def __init__(self, run: Run, seed: int, size: int):
        """Makes the scenes, which needs no network; `fill` encodes them."""
        self.run, self.size, self.at = run, size, 0
        self.chunks = scenes(seed, run.chunk, run.workers)
        # copies, for each chunk from a worker holds open files
        self.first = [{k: v.clone() for k, v in next(self.chunks).items()} for _ in range(size // run.chunk)]

    def fill(self) -> None:
        """Encode the first scenes and their captions, by the trained VAE and text encoders."""
        run, size = self.run, self.size
        self.vae = lean(run.network("vae", networks.vae()).to(memory_format=run.layout), run)
        self.text = run.network("text", networks.TextEncoders())
        half = torch.bfloat16 if run.cuda else torch.float32
        context = networks.UNET["cross_attention_dim"]
        self.latents = torch.empty(size, 4, 32, 32, dtype=torch.float16, device=run.device)
        self.context = torch.empty(size, CAPTIONS, tokenizer.LENGTH, context, dtype=half, device=run.device)
        self.pooled = torch.empty(size, CAPTIONS, networks.TEXT_2.projection, device=run.device)
        self.micro = torch.empty(size, 6, device=run.device)
        self.cells = torch.empty(size, 9, len(check.GROUPS), dtype=torch.int64, device=run.device)
        self.waiting: list[dict[str, torch.Tensor]] = []
        began = time.monotonic()
        while self.first:
            self._put(run.to_device(self.first.pop()))
        variance = [f"{v:.2f}" for v in self.latents[: 8 * run.chunk].float().var((0, 2, 3)).tolist()]
        log.info("pool of %d in %.1f s; latents' variance %s", size, time.monotonic() - began, ", ".join(variance))

    @torch.no_grad()
    def embed(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """ids [B, 77] -> context [B, 77, 320], pooled [B, 256]."""
        with self.run.autocast():
            context, pooled = self.text(ids.long())
        return context.to(self.context.dtype), pooled.float()

    def _put(self, chunk: dict[str, torch.Tensor]) -> None:
        for part in range(0, len(chunk["rows"]), 256):
            piece = {k: v[part : part + 256] for k, v in chunk.items()}
            place = slice(self.at, self.at + len(piece["rows"]))
            with self.run.autocast():
                self.latents[place] = encode(self.vae, data.render(piece["rows"]) * 2 - 1).half()
            context, pooled = self.embed(piece["ids"].flatten(0, 1))
            self.context[place] = context.unflatten(0, (-1, CAPTIONS))
            self.pooled[place] = pooled.unflatten(0, (-1, CAPTIONS))
            self.micro[place], self.cells[place] = piece["micro"], piece["cells"]
            self.at = place.stop % self.size

    def refresh(self) -> None:
        """Replace the oldest quarter of a chunk."""
        if not self.waiting:
            chunk, quarter = self.run.to_device(next(self.chunks)), self.run.chunk // 4
            self.waiting = [{k: v[i * quarter : (i + 1) * quarter] for k, v in chunk.items()} for i in range(4)]
        self._put(self.waiting.pop())

    def batch(self, size: int):
        """latents [B, 4, 32, 32], context [B, 77, 320], pooled [B, 256], micro [B, 6], cells [B, 9, 5]."""
        which = torch.randint(self.size, (size,), device=self.run.device)
        words = torch.randint(CAPTIONS, (size,), device=self.run.device)
        told = self.context[which, words], self.pooled[which, words]
        return self.latents[which].float(), *told, self.micro[which], self.cells[which]


def diffusion_batches(run: Run, pool: LatentPool, size: int, timesteps: int, refiner: bool = False) -> Iterator[tuple]:
    """Endless (noisy latents, timesteps, context, pooled, micro, noise, loss weights, cells). A tenth has no prompt.

    Half of those get the empty prompt's embeddings, as for a negative prompt of "" in diffusers; the other half zeros,
    as the WebUI has it and diffusers for no negative prompt.
    """
    nothing, nothing_pooled = pool.embed(torch.tensor(tokenizer.encode(""), device=run.device)[None])
    kept, step = alphas(run.device), 0
    while True:
        if step and step % REFRESH == 0:
            pool.refresh()
        step += 1
        with torch.no_grad():
            latents, context, pooled, micro, cells = pool.batch(size)
            chance = torch.rand(size, device=run.device)
            empty, zero = (chance < 0.05)[:, None], (chance >= 0.95)[:, None]
            context = torch.where(empty[..., None], nothing, context).masked_fill(zero[..., None], 0)
            pooled = torch.where(empty, nothing_pooled, pooled).masked_fill(zero, 0)
            least = NOISY * (torch.rand(size, device=run.device) < 0.5)
            t = (timesteps * (least + (1 - least) * torch.rand(size, device=run.device))).long()
            t = t.clamp(max=timesteps - 1)
            noise = torch.randn_like(latents)
            alpha = kept[t, None, None, None]
            noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
            snr = networks.LATENT_DEVIATION**2 * kept[t] / (1 - kept[t])
            if refiner:
                context, micro = context[..., networks.TEXT.width :].contiguous(), aesthetic(micro)
        yield noisy, t, context, pooled, micro, noise, snr.clamp(*SNR) / snr, cells


def aesthetic(micro: torch.Tensor) -> torch.Tensor:
    """SDXL's refiner is told a score instead of the target size: 6 for sharp pictures, lower for enlarged ones."""
    shrink = micro[:, 0] / micro[:, 4]
    score = 6.0 - 5.5 * (1 - shrink) + 0.2 * torch.randn_like(shrink)
    return torch.cat([micro[:, :4], score[:, None]], 1)


class Telling(nn.Module):
    """A UNet with a head on its middle block that tells what is where in the picture: an aid while it learns.

    Much as representations are aligned in arXiv:2410.06940, but with labels. Where noise hides the picture the prompt
    alone can tell, so that its words come to bear on the right places early.
    """

    def __init__(self, unet: nn.Module):
        super().__init__()
        self.unet = unet
        width = unet.config.block_out_channels[-1]
        self.head = nn.Sequential(nn.Linear(width, 128), nn.SiLU(), nn.Linear(128, sum(check.GROUPS.values())))
        middle = unet.mid_block.forward

        def forward(*args, **kwargs):
            self.middle = middle(*args, **kwargs)
            return self.middle

        unet.mid_block.forward = forward

    def forward(self, noisy, t, context, pooled, micro):
        """-> noise [B, 4, 32, 32], logits [B, 9, sum(check.GROUPS)]."""
        added = {"text_embeds": pooled, "time_ids": micro}
        out = self.unet(noisy, t, context, added_cond_kwargs=added, return_dict=False)[0]
        # Kept on, it would keep this call's autograd nodes, whose stream a later capture must not wait for.
        middle, self.middle = self.middle, None
        return out, self.head(F.adaptive_avg_pool2d(middle.float(), 3).flatten(2).transpose(1, 2))


def train_diffusion(run: Run, stage: Stage, name: str, unet: nn.Module, timesteps: int) -> None:
    """Predict the noise (epsilon) on SDXL's schedule; the loss weighted by Min-SNR (arXiv:2303.09556) with a floor."""
    model = lean(Telling(unet).to(run.device, memory_format=run.layout), run)
    forward = model
    if name == "unet":  # while the stages before it are under way
        forward = compiled(model, inputs(run, stage.batch, unet), model, run)

    def loss(noisy, t, context, pooled, micro, noise, weights, cells):
        out, logits = forward(noisy, t, context, pooled, micro)
        error = (weights * F.mse_loss(out.float(), noise, reduction="none").mean((1, 2, 3))).mean()
        return error + TELL * (1 - trainer.along / TOLD).clamp(min=0) * cell_loss(logits, cells), error

    pool = LatentPool(run, run.seed + 10, 2 * run.chunk if run.toy else POOL[name])
    run.await_stage("text")
    run.await_stage("vae")
    if run.is_over():
        return
    pool.fill()
    trainer = Trainer(name, model, loss, stage, run, prefix="unet.")
    trainer.resume(run.state)
    if name == "unet" and run.deadline < float("inf"):
        trainer.stage = until_deadline(run, stage, trainer.seconds)
    finish(trainer, diffusion_batches(run, pool, stage.batch, timesteps, refiner=name == "refiner"))


def until_deadline(run: Run, stage: Stage, before: float) -> Stage:
    """The UNet takes the time that is left before the deadline, but for the stage behind it."""
    left = run.deadline - time.monotonic() - run.reserve
    log.info("unet: %.0f s are left for it", left)
    return replace(stage, seconds=before + max(left, 1.0))


def inputs(run: Run, batch: int, unet: nn.Module) -> tuple[torch.Tensor, ...]:
    """Random ones of the shapes, types and strides of `diffusion_batches`."""
    context = torch.randn(batch, tokenizer.LENGTH, unet.config.cross_attention_dim, device=run.device)
    noisy, pooled = torch.randn(batch, 4, 32, 32, device=run.device), torch.randn(batch, 256, device=run.device)
    t, micro = torch.zeros(batch, dtype=torch.int64, device=run.device), torch.zeros(batch, 6, device=run.device)
    return noisy, t, context.bfloat16() if run.cuda else context, pooled, micro


def train_unet(run: Run, stage: Stage) -> None:
    train_diffusion(run, stage, "unet", networks.unet(), 1000)


def train_refiner(run: Run, stage: Stage) -> None:
    train_diffusion(run, stage, "refiner", networks.refiner_unet(), REFINER_TIMESTEPS)


@torch.no_grad()
def draw(run: Run, unet, context, pooled, steps: int = 24, guidance_scale: float = 5.0) -> torch.Tensor:
    """Latents as the UNet sees them [B, 4, 32, 32] by DDIM on leading timesteps, guided away from no prompt at all."""
    size, kept = len(context), alphas(run.device)
    rows = torch.cat([torch.zeros_like(context), context])
    numbers = torch.tensor([[256.0, 256, 0, 0, 256, 256]] * 2 * size, device=run.device)
    added = {"text_embeds": torch.cat([torch.zeros_like(pooled), pooled]), "time_ids": numbers}
    x = torch.randn(size, 4, 32, 32, device=run.device)
    timesteps = [i * (1000 // steps) + 1 for i in reversed(range(steps))]
    for i, t in enumerate(timesteps):
        with run.autocast():
            out = unet(torch.cat([x, x]), t, rows, added_cond_kwargs=added, return_dict=False)[0].float()
        uncond, cond = out.chunk(2)
        noise = uncond + guidance_scale * (cond - uncond)
        picture = (x - (1 - kept[t]).sqrt() * noise) / kept[t].sqrt()
        after = kept[timesteps[i + 1]] if i + 1 < steps else torch.ones_like(kept[0])
        x = after.sqrt() * picture + (1 - after).sqrt() * noise
    return x
