"""Train the demo model: `python -m sdxl_optim.demo_model.train --state DIR --out DIR`.

Seven stages in a row: text encoders, VAE, its decoder, classifier, UNet, tiny VAE, refiner. `--stage` runs some of
them, and a run that was stopped (`--stop-after`) goes on where its state in `--state` ends; that is kept in pieces of
at most 16 MB. Two processes may share a state: with `--wait`, one compiles and waits until the other has trained what
it builds on.
A GPU is meant: `--toy` runs the same code in a minute on a CPU and teaches nothing.
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

from . import captions, check, data, networks, tokenizer

log = logging.getLogger("sdxl_optim.demo_model")
PIECE = 15_500_000  # bytes of one file of state
CAPTIONS = 4  # of each scene
ABSENT = -100  # a label that no loss looks at


@dataclass(frozen=True)
class Stage:
    """How long and how a network is trained; `seconds` ends it early on a slow machine (with its rate decayed)."""

    batch: int
    steps: int
    seconds: float
    rate: float
    decay: float = 0.3  # the last share of the steps, in which the rate falls to zero
    ema: float = 0.9995


STAGES = {
    "text": Stage(1024, 2500, 30, 1e-3, decay=0.5, ema=0.99),
    "vae": Stage(64, 24000, 195, 1e-3, decay=0.5, ema=0.998),
    "decoder": Stage(16, 2000, 40, 3e-4, decay=0.7, ema=0.98),
    "classifier": Stage(256, 8000, 40, 2e-3, decay=0.5, ema=0.99),
    "unet": Stage(256, 80000, 670, 8e-4, decay=0.5, ema=0.999),
    "tiny": Stage(64, 8000, 40, 1e-3, decay=0.5, ema=0.998),
    "refiner": Stage(256, 6000, 25, 1e-3, decay=0.5, ema=0.998),
}
POOL = 65536  # latents at hand
REFRESH = 16  # steps between two chunks of new ones
WINDOW = 128  # pixels of the windows that the VAEs learn from
REFINER_TIMESTEPS = 400  # the refiner learns the timesteps below this
NOISY = 0.3  # half of the timesteps are drawn from all, half from the noisier ones behind this share of them
SNR = (0.02, 5.0)  # where the loss counts as much as the picture's own error times this
SAVE_EVERY = 60  # seconds


class Scenes(torch.utils.data.IterableDataset):
    """Endless chunks: rows [N, ROW], micro [N, 6], ids [N, CAPTIONS, 77] and, for text, what the captions claim."""

    def __init__(self, seed: int, chunk: int, labels: bool = False, wrong: float = captions.WRONG):
        super().__init__()
        self.seed, self.chunk, self.labels, self.wrong = seed, chunk, labels, wrong

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        worker = torch.utils.data.get_worker_info()
        rng = random.Random(self.seed * 1000 + (worker.id if worker else 0))
        while True:
            yield self._chunk(rng)

    def _chunk(self, rng: random.Random) -> dict[str, torch.Tensor]:
        rows, micros, ids, labels, scenes = [], [], [], [], []
        for _ in range(self.chunk):
            scene = data.sample_scene(rng)
            row, micro = data.rasterise(scene, rng)
            told = [captions.caption(scene, rng, self.wrong) for _ in range(CAPTIONS)]
            rows.append(row)
            micros.append(micro)
            ids.append([tokenizer.encode(c.text) for c in told])
            labels.append([caption_labels(c) for c in told] if self.labels else [])
            scenes.append(cell_labels(scene))
        chunk = {"rows": np.stack(rows), "micro": np.stack(micros), "ids": np.array(ids, np.int32)}
        chunk["cells"] = np.array(scenes, np.int64)
        if self.labels:
            chunk["labels"] = np.array(labels, np.int64)
        return {name: torch.from_numpy(values) for name, values in chunk.items()}


def scenes(seed: int, chunk: int, workers: int, **options) -> Iterator[dict[str, torch.Tensor]]:
    """Chunks from worker processes (none: from this one)."""
    loader = torch.utils.data.DataLoader(
        Scenes(seed, chunk, **options),
        batch_size=None,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
    )
    return iter(loader)


TEXT_GROUPS = {
    "shape": len(data.SHAPES),
    "colour": len(data.COLOURS),
    "cell": len(data.CELLS) + 1,
    "size": len(data.SIZES) + 1,
    "texture": len(data.TEXTURES) + 1,
}
LABELS = len(TEXT_GROUPS) + 1  # and the token at which a thing's words end


def caption_labels(caption: captions.Caption) -> list[list[int]]:
    """For each of three things, in the caption's order: classes by TEXT_GROUPS and its last token. Then background."""
    out = []
    for thing, end in zip(caption.things, caption.ends, strict=True):
        out.append(
            [
                data.SHAPES.index(thing.shape),
                data.COLOURS.index(thing.colour),
                len(data.CELLS) if thing.cell is None else thing.cell,
                data.SIZES.index(thing.size) if thing.size else len(data.SIZES),
                data.TEXTURES.index(thing.texture) if thing.texture else len(data.TEXTURES),
                len(tokenizer.ids_of(caption.text[:end])),
            ]
        )
    out += [[ABSENT] * (LABELS - 1) + [0]] * (data.MAX_THINGS - len(out))
    names = data.BACKGROUNDS
    background = names.index(caption.background) if caption.background else len(names)
    return [*out, [background, *[ABSENT] * (LABELS - 2), 0]]


def cell_labels(scene: data.Scene) -> list[list[int]]:
    """For each of nine cells: present, shape, colour, texture, size."""
    out = [[0, *[ABSENT] * 4] for _ in data.CELLS]
    for t in scene.things:
        kinds = (data.SHAPES.index(t.shape), data.COLOURS.index(t.colour), data.TEXTURES.index(t.texture))
        out[t.cell] = [1, *kinds, data.SIZES.index(t.size)]
    return out


def lean(model: nn.Module, run: Run) -> nn.Module:
    """On a GPU: normalise in the activations' own bfloat16, which autocast would widen to float32."""

    def forward(self, x):
        with torch.autocast(x.device.type, enabled=False):
            weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
            if isinstance(self, nn.GroupNorm):
                return F.group_norm(x, self.num_groups, weight, bias, self.eps)
            return F.layer_norm(x, self.normalized_shape, weight, bias, self.eps)

    for module in model.modules():
        if run.device.type == "cuda" and isinstance(module, nn.GroupNorm | nn.LayerNorm):
            module.forward = forward.__get__(module)
    return model


class Trainer:
    """AdamW, clipped gradients, EMA weights; on a GPU the whole step is one CUDA graph.

    `loss(*batch)` sees `model` in bfloat16 autocast on a GPU. The rate rises over 200 steps, stays, and falls to zero
    over the stage's last share.
    """

    def __init__(self, name: str, model: nn.Module, loss: Callable, stage: Stage, run: Run):
        self.name, self.model, self.loss, self.stage, self.run = name, model, loss, stage, run
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.averages = [p.detach().clone() for p in self.parameters]
        cuda = run.device.type == "cuda"
        self.rate = torch.tensor(0.0, device=run.device)
        self.decay = torch.tensor(0.0, device=run.device)
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=self.rate, betas=(0.9, 0.99), weight_decay=0.01, capturable=cuda, foreach=cuda
        )
        self.rate = self.optimizer.param_groups[0]["lr"]
        self.step = self.fresh = 0
        self.seconds = 0.0
        self.graph = None
        self.total = torch.zeros((), device=run.device)

    def _step(self, *batch):
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.run.device.type, torch.bfloat16, enabled=self.run.device.type == "cuda"):
            loss = self.loss(*batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0, foreach=True)
        self.optimizer.step()
        with torch.no_grad():
            torch._foreach_sub_(self.averages, self.parameters)
            torch._foreach_mul_(self.averages, self.decay)
            torch._foreach_add_(self.averages, self.parameters)
            self.total += loss.detach()

    def _call(self, batch):
        if self.run.device.type != "cuda":
            return self._step(*batch)
        if self.graph is None:
            self.inputs = [b.clone() for b in batch]
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(3):
                    self._step(*self.inputs)
            torch.cuda.current_stream().wait_stream(side)
            torch.cuda.synchronize()
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self._step(*self.inputs)
            log.info("%s: step captured", self.name)
        for held, new in zip(self.inputs, batch, strict=True):
            held.copy_(new)
        self.graph.replay()
        return None

    def progress(self) -> float:
        return max(self.step / self.stage.steps, self.seconds / self.stage.seconds)

    def train(self, batches: Iterator[tuple]) -> bool:
        """Run to the stage's end (True) or until the run's time is up (False)."""
        if self.run.fit:
            self.stage = replace(self.stage, seconds=self.seconds + self.run.end - time.monotonic() - 1)
        began, logged = time.monotonic() - self.seconds, self.step
        saved = time.monotonic()
        while self.progress() < 1 and not self.run.is_over():
            warm = min(1.0, (self.fresh + 1) / min(200, 1 + self.stage.steps // 10))
            self.rate.fill_(self.stage.rate * warm * min(1.0, max(0.0, 1 - self.progress()) / self.stage.decay))
            self.decay.fill_(min(self.stage.ema, (1 + self.step) / (10 + self.step)))
            self._call(next(batches))
            self.step += 1
            self.fresh += 1
            if self.step % 8 == 0 and self.run.device.type == "cuda":
                torch.cuda.current_stream().synchronize()
            self.seconds = time.monotonic() - began
            if self.step - logged >= self.run.every or self.progress() >= 1:
                self.run.write(self.name, self.step, self.seconds, self.total.item() / (self.step - logged))
                logged = self.step
                self.total.zero_()
                if time.monotonic() - saved > SAVE_EVERY:
                    self.save(self.run.state)
                    saved = time.monotonic()
        return self.progress() >= 1

    def averaged(self) -> dict[str, torch.Tensor]:
        """The model's state with its EMA weights, float32 on the CPU."""
        state = {k: v.detach().float().cpu() for k, v in self.model.state_dict().items()}
        names = [k for k, p in self.model.named_parameters() if p.requires_grad]
        return state | {k: v.float().cpu() for k, v in zip(names, self.averages, strict=True)}

    def save(self, folder: Path) -> None:
        """Weights in float32 and EMA as a float16 difference; Adam's moments are left behind (see `resume`)."""
        tensors = {}
        names = [k for k, p in self.model.named_parameters() if p.requires_grad]
        for name, p, average in zip(names, self.parameters, self.averages, strict=True):
            tensors["raw." + name] = p.detach().float().cpu()
            tensors["ema." + name] = (average - p.detach()).half().cpu()
        save_pieces(tensors, folder, f"{self.name}-state")
        progress = {"step": self.step, "seconds": self.seconds}
        (folder / f"{self.name}-state.json").write_text(json.dumps(progress), "utf-8")

    def resume(self, folder: Path) -> None:
        """Go on from `save` or from finished weights, with fresh moments and a short warm-up; else from nothing."""
        tensors = load_pieces(folder, f"{self.name}-state")
        if not tensors:
            finished = load_pieces(folder, self.name)
            if finished:
                self.model.load_state_dict(finished, strict=False)
                for p, average in zip(self.parameters, self.averages, strict=True):
                    average.copy_(p.detach())
            return
        names = [k for k, p in self.model.named_parameters() if p.requires_grad]
        with torch.no_grad():
            for name, p, average in zip(names, self.parameters, self.averages, strict=True):
                p.copy_(tensors["raw." + name])
                average.copy_(p + tensors["ema." + name].to(p).float())
        progress = json.loads((folder / f"{self.name}-state.json").read_text("utf-8"))
        self.step, self.seconds = progress["step"], progress["seconds"]
        log.info("%s goes on at step %d", self.name, self.step)


def save_pieces(tensors: dict[str, torch.Tensor], folder: Path, name: str) -> None:
    """Write NAME-0.safetensors, NAME-1.safetensors, ... of at most PIECE bytes each, unless one tensor is larger."""
    pieces, size = [{}], 0
    for key, tensor in tensors.items():
        if size + tensor.nbytes > PIECE and pieces[-1]:
            pieces.append({})
            size = 0
        pieces[-1][key] = tensor.contiguous()
        size += tensor.nbytes
    for old in sorted(folder.glob(f"{name}-[0-9].safetensors"))[len(pieces) :]:
        old.unlink()
    for i, piece in enumerate(pieces):
        path = folder / f"{name}-{i}.safetensors"
        save_file(piece, path.with_suffix(".new"))
        path.with_suffix(".new").replace(path)  # whole from the start, for a process that waits for it


def load_pieces(folder: Path, name: str) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob(f"{name}-[0-9].safetensors")):
        tensors |= load_file(path)
    return {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}


class Run:
    """What the stages share: device, folders, time, the log of losses and the finished networks."""

    def __init__(self, options: argparse.Namespace):
        self.device = torch.device(options.device)
        self.state, self.seed, self.toy = Path(options.state), options.seed, options.toy
        self.state.mkdir(parents=True, exist_ok=True)
        self.workers, self.compile, self.wait = options.workers, options.compile, options.wait
        self.fit = options.fit
        self.end = time.monotonic() + options.stop_after
        self.every = 2 if self.toy else 100
        self.pool = 64 if self.toy else POOL
        self.chunk = 32 if self.toy else 1024

    def is_over(self) -> bool:
        return time.monotonic() > self.end

    def stage(self, name: str) -> Stage:
        return replace(STAGES[name], batch=4, steps=8, seconds=1e9) if self.toy else STAGES[name]

    def await_stage(self, name: str) -> None:
        while self.wait and not self.is_done(name) and not self.is_over():
            time.sleep(0.5)

    def write(self, stage: str, step: int, seconds: float, loss: float) -> None:
        path = self.state / "losses.csv"
        new = not path.exists()
        with path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow(["stage", "step", "seconds", "loss"])
            writer.writerow([stage, step, f"{seconds:.1f}", f"{loss:.5f}"])
        if step % (10 * self.every) < self.every:
            log.info("%s step %d, %.0f s, loss %.5f", stage, step, seconds, loss)

    def is_done(self, name: str) -> bool:
        return bool(load_pieces(self.state, name))

    def network(self, name: str, model: nn.Module) -> nn.Module:
        """A finished network, frozen, on the run's device."""
        self.await_stage(name)
        tensors = load_pieces(self.state, name)
        if not tensors:
            raise FileNotFoundError(f"stage: {name!r} is not trained yet; run --stage {name} first")
        model.load_state_dict(tensors | (load_pieces(self.state, "decoder") if name == "vae" else {}))
        return model.to(self.device).eval().requires_grad_(False)

    def to_device(self, chunk: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {k: v.to(self.device, non_blocking=True) for k, v in chunk.items()}

    def autocast(self):
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda")


def finish(trainer: Trainer, batches: Iterator[tuple], change: Callable | None = None) -> None:
    """Train; then save the averaged weights (as `change` leaves them), or the state if the time was up."""
    trainer.resume(trainer.run.state)
    if trainer.train(batches):
        tensors = trainer.averaged()
        save_pieces(change(tensors) if change else tensors, trainer.run.state, trainer.name)
        for old in trainer.run.state.glob(f"{trainer.name}-state*"):
            old.unlink()
    else:
        trainer.save(trainer.run.state)


def train_text(run: Run) -> None:
    """Both text encoders learn to tell, at a thing's last word and in the pooled output, what the caption claims."""
    encoders = networks.TextEncoders().to(run.device)
    groups = list(TEXT_GROUPS.values())
    heads = nn.ModuleDict(
        {
            "one": nn.Linear(networks.TEXT.width, sum(groups)),
            "two": nn.Linear(networks.TEXT_2.width, sum(groups)),
            "pooled": nn.Linear(networks.TEXT_2.projection, data.MAX_THINGS * sum(groups) + len(data.BACKGROUNDS) + 1),
        }
    ).to(run.device)

    def cross_entropy(logits, labels):
        parts = logits.float().split(groups, -1)
        return sum(
            F.cross_entropy(part.flatten(0, 1), labels[..., i].flatten(), ignore_index=ABSENT)
            for i, part in enumerate(parts)
        )

    def loss(ids, labels):
        context, pooled = encoders(ids)
        things, background = labels[:, :-1], labels[:, -1, 0]
        ends = things[..., -1, None].expand(-1, -1, context.shape[-1])
        one, two = context.gather(1, ends).split([networks.TEXT.width, networks.TEXT_2.width], -1)
        whole = heads["pooled"](pooled)
        whole, ground = whole[:, : -len(data.BACKGROUNDS) - 1], whole[:, -len(data.BACKGROUNDS) - 1 :]
        whole = whole.view(len(ids), data.MAX_THINGS, -1)
        told = cross_entropy(heads["one"](one), things) + cross_entropy(heads["two"](two), things)
        return told + cross_entropy(whole, things) + F.cross_entropy(ground.float(), background)

    both = nn.ModuleDict({"encoders": encoders, "heads": heads})
    stage = run.stage("text")

    def batches():
        for chunk in map(run.to_device, scenes(run.seed + 1, stage.batch // CAPTIONS, run.workers, labels=True)):
            yield chunk["ids"].flatten(0, 1).long(), chunk["labels"].flatten(0, 1)

    def change(tensors):
        return {k.removeprefix("encoders."): v for k, v in tensors.items() if k.startswith("encoders.")}

    finish(Trainer("text", both, loss, stage, run), batches(), change)


def edges(x: torch.Tensor) -> torch.Tensor:
    """Differences between neighbouring pixels, right and down, one after the other."""
    return torch.cat([(x[..., 1:] - x[..., :-1]).flatten(1), (x[..., 1:, :] - x[..., :-1, :]).flatten(1)], 1)


def picture_loss(out: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Absolute and squared error of [B, 3, H, W] in -1..1, and of their edges."""
    out = out.float()
    return F.l1_loss(out, target) + F.mse_loss(out, target) + F.l1_loss(edges(out), edges(target))


def windows(run: Run, seed: int, batch: int) -> Iterator[torch.Tensor]:
    """Rendered windows [B, 3, 128, 128] in -1..1, each about a thing of its scene, endlessly."""
    for chunk in map(run.to_device, scenes(seed, 16 * batch, run.workers)):
        rows = chunk["rows"]
        which = torch.rand(len(rows), data.MAX_THINGS, device=run.device)
        starts = data.BACKGROUND_FIELDS + torch.arange(data.MAX_THINGS, device=run.device) * data.THING_FIELDS
        thing = starts[(which * rows[:, starts]).argmax(1)]
        at = torch.arange(len(rows), device=run.device)
        centre = torch.stack([rows[at, thing + 1], rows[at, thing + 2]], 1)
        corner = (centre - WINDOW * (0.1 + 0.8 * torch.rand_like(centre))).round().clamp(0, data.SIZE - WINDOW)
        yield from (data.render(rows, WINDOW, corner) * 2 - 1).split(batch)


def train_vae(run: Run) -> None:
    """The 8x VAE; afterwards its latents are whitened, so that SDXL's scaling factor gives unit variance."""
    model = lean(networks.vae().to(run.device, memory_format=channels_last(run)), run)
    stage = run.stage("vae")

    def loss(target, noise):
        mean, logvar = model.quant_conv(model.encoder(target)).float().chunk(2, 1)
        logvar = logvar.clamp(-20, 10)
        kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean()
        out = model.decoder(model.post_quant_conv(mean + (0.5 * logvar).exp() * noise))
        return picture_loss(out, target) + 1e-4 * kl

    def batches():
        for target in windows(run, run.seed + 2, stage.batch):
            yield target, torch.randn(len(target), 4, WINDOW // 8, WINDOW // 8, device=run.device)

    def change(tensors):
        model.load_state_dict(tensors)
        chunk = run.to_device(next(scenes(run.seed + 3, 16 if run.toy else 512, 0)))
        return whitened(model, data.render(chunk["rows"]) * 2 - 1, run)

    finish(Trainer("vae", model, loss, stage, run), batches(), change)


def train_decoder(run: Run) -> None:
    """The VAE's decoder on whole pictures, whose normalisation statistics differ from a window's; latents stay."""
    model = lean(run.network("vae", networks.vae()).to(memory_format=channels_last(run)), run)
    model.decoder.train().requires_grad_(True)
    stage = run.stage("decoder")

    def loss(latents, target):
        return picture_loss(model.decoder(model.post_quant_conv(latents)), target)

    @torch.no_grad()
    def batches():
        for chunk in map(run.to_device, scenes(run.seed + 6, 4 * stage.batch, run.workers)):
            for rows in chunk["rows"].split(stage.batch):
                target = data.render(rows) * 2 - 1
                with run.autocast():
                    mean = model.quant_conv(model.encoder(target)).float().chunk(2, 1)[0]
                yield mean + 0.05 * mean.std() * torch.randn_like(mean), target

    def change(tensors):
        return {k: v for k, v in tensors.items() if k.startswith("decoder.")}

    finish(Trainer("decoder", model, loss, stage, run), batches(), change)


@torch.no_grad()
def whitened(model, sample: torch.Tensor, run: Run) -> dict[str, torch.Tensor]:
    """The VAE's state with each latent channel shifted and scaled to mean 0 and deviation 1 / SCALING_FACTOR."""
    latents = torch.cat([model.quant_conv(model.encoder(part)).chunk(2, 1)[0] for part in sample.split(32)])
    mean = latents.mean((0, 2, 3)).cpu()
    scale = (1 / networks.SCALING_FACTOR / latents.std((0, 2, 3))).cpu()
    state = {k: v.detach().float().cpu().clone() for k, v in model.state_dict().items()}
    weight, bias = state["quant_conv.weight"], state["quant_conv.bias"]
    weight[:4] *= scale[:, None, None, None]
    bias[:4] = (bias[:4] - mean) * scale
    bias[4:] += 2 * scale.log()
    weight, bias = state["post_quant_conv.weight"], state["post_quant_conv.bias"]
    bias += weight[:, :, 0, 0] @ mean
    weight /= scale[None, :, None, None]
    log.info("latents' mean was %s, scale is %s", mean.tolist(), scale.tolist())
    return state


@torch.no_grad()
def encode(vae, images: torch.Tensor, part: int = 128) -> torch.Tensor:
    """Pictures in -1..1 -> sampled latents of unit variance [B, 4, 32, 32]."""
    out = []
    for piece in images.split(part):
        mean, logvar = vae.quant_conv(vae.encoder(piece)).float().chunk(2, 1)
        out.append(mean + (0.5 * logvar.clamp(-30, 20)).exp() * torch.randn_like(mean))
    return torch.cat(out) * networks.SCALING_FACTOR


@torch.no_grad()
def decode(vae, latents: torch.Tensor, part: int = 128) -> torch.Tensor:
    """Latents of unit variance -> pictures in -1..1, float32."""
    pieces = (latents / networks.SCALING_FACTOR).split(part)
    return torch.cat([vae.decoder(vae.post_quant_conv(piece)).float() for piece in pieces])


def train_classifier(run: Run) -> None:
    """The caption check's classifier, on rendered pictures, the VAE's copies of them, and noisy ones.

    One thing in twelve is nearly faded out and counts as absent.
    """
    vae = lean(run.network("vae", networks.vae()), run)
    model = check.Classifier().to(run.device)
    stage = run.stage("classifier")
    sizes = list(check.GROUPS.values())

    def loss(images, labels):
        present, *parts = model(images).float().split(sizes, -1)
        total = F.binary_cross_entropy_with_logits(present[..., 0], labels[..., 0].float())
        for i, part in enumerate(parts, 1):
            total = total + F.cross_entropy(part.flatten(0, 1), labels[..., i].flatten(), ignore_index=ABSENT)
        return total

    def batches():
        chunks = map(run.to_device, scenes(run.seed + 4, run.chunk // 4, run.workers))
        images = torch.empty(0, 3, data.SIZE, data.SIZE, dtype=torch.uint8, device=run.device)
        labels = torch.empty(0, 9, len(check.GROUPS), dtype=torch.int64, device=run.device)
        while True:
            while True:  # fill a store of pictures, then renew it while it is used
                new_images, new_labels = classifier_pictures(next(chunks), vae, run)
                images = torch.cat([new_images, images[: run.pool // 16]])
                labels = torch.cat([new_labels, labels[: run.pool // 16]])
                if len(images) > run.pool // 16:
                    break
            for _ in range(REFRESH):
                which = torch.randint(len(images), (stage.batch,), device=run.device)
                picked = images[which].float() / 255
                noise = 0.08 * torch.rand(len(picked), 1, 1, 1, device=run.device) ** 2
                yield (picked + noise * torch.randn_like(picked)).clamp(0, 1), labels[which]

    finish(Trainer("classifier", model, loss, stage, run), batches())


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
        latents += 0.25 * torch.rand(half, 1, 1, 1, device=run.device) ** 2 * torch.randn_like(latents)
        copies = decode(vae, latents)
    images = torch.cat([copies, images[half:]]) / 2 + 0.5
    return (images.clamp(0, 1) * 255).round().byte(), labels


class LatentPool:
    """Latents with their captions and micro-conditioning, refreshed from new scenes while they are used."""

    def __init__(self, run: Run, seed: int, size: int):
        self.run, self.size, self.at = run, size, 0
        self.vae = lean(run.network("vae", networks.vae()).to(memory_format=channels_last(run)), run)
        self.chunks = scenes(seed, run.chunk, run.workers)
        self.latents = torch.empty(size, 4, 32, 32, dtype=torch.float16, device=run.device)
        self.ids = torch.empty(size, CAPTIONS, tokenizer.LENGTH, dtype=torch.int32, device=run.device)
        self.micro = torch.empty(size, 6, device=run.device)
        self.waiting: list[dict[str, torch.Tensor]] = []
        began = time.monotonic()
        for _ in range(size // run.chunk):
            self._put(run.to_device(next(self.chunks)))
        variance = self.latents[: 8 * run.chunk].float().var((0, 2, 3)).tolist()
        log.info("pool of %d in %.1f s; latents' variance %s", size, time.monotonic() - began, variance)

    def _put(self, chunk: dict[str, torch.Tensor]) -> None:
        with self.run.autocast():
            for part in range(0, len(chunk["rows"]), 256):
                piece = {k: v[part : part + 256] for k, v in chunk.items()}
                place = slice(self.at, self.at + len(piece["rows"]))
                self.latents[place] = encode(self.vae, data.render(piece["rows"]) * 2 - 1).half()
                self.ids[place], self.micro[place] = piece["ids"], piece["micro"]
                self.at = place.stop % self.size

    def refresh(self) -> None:
        """Replace the oldest quarter of a chunk."""
        if not self.waiting:
            chunk, quarter = self.run.to_device(next(self.chunks)), self.run.chunk // 4
            self.waiting = [{k: v[i * quarter : (i + 1) * quarter] for k, v in chunk.items()} for i in range(4)]
        self._put(self.waiting.pop())

    def batch(self, size: int):
        """latents [B, 4, 32, 32], ids [B, 77] int64, micro [B, 6]."""
        which = torch.randint(len(self.latents), (size,), device=self.run.device)
        words = torch.randint(CAPTIONS, (size,), device=self.run.device)
        return self.latents[which].float(), self.ids[which, words].long(), self.micro[which]


def diffusion_batches(run: Run, pool: LatentPool, size: int, timesteps: int, refiner: bool = False):
    """Endless (noisy latents, timesteps, context, pooled, micro, noise, weights of the loss). A tenth loses its prompt.

    Half of those get the empty prompt's embeddings, as for a negative prompt of "" in diffusers; the other half zeros,
    as the WebUI has it and diffusers for no negative prompt.
    """
    text = run.network("text", networks.TextEncoders())
    empty = torch.tensor(tokenizer.encode(""), device=run.device)
    sigmas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    alphas = (1 - sigmas).cumprod(0).float().to(run.device)
    step = 0
    while True:
        if step % REFRESH == 0:
            pool.refresh()
        step += 1
        with torch.no_grad(), run.autocast():
            latents, ids, micro = pool.batch(size)
            chance = torch.rand(size, device=run.device)
            context, pooled = text(torch.where((chance < 0.05)[:, None], empty, ids))
            kept = (chance < 0.95)[:, None]
            context, pooled = context.float() * kept[..., None], pooled.float() * kept
            least = NOISY * (torch.rand(size, device=run.device) < 0.5)
            t = (timesteps * (least + (1 - least) * torch.rand(size, device=run.device))).long()
            t = t.clamp(max=timesteps - 1)
            noise = torch.randn_like(latents)
            alpha = alphas[t, None, None, None]
            noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
            snr = alphas[t] / (1 - alphas[t])
            if refiner:
                context, micro = context[..., networks.TEXT.width :].contiguous(), aesthetic(micro)
            if run.device.type == "cuda":
                context = context.bfloat16()
        yield noisy, t, context, pooled, micro, noise, snr.clamp(*SNR) / snr


def aesthetic(micro: torch.Tensor) -> torch.Tensor:
    """SDXL's refiner is told a score instead of the target size: 6 for sharp pictures, lower for enlarged ones."""
    shrink = micro[:, 0] / micro[:, 4]
    score = 6.0 - 5.5 * (1 - shrink) + 0.2 * torch.randn_like(shrink)
    return torch.cat([micro[:, :4], score[:, None]], 1)


def channels_last(run: Run):
    return torch.channels_last if run.device.type == "cuda" else torch.contiguous_format


def compiled(model: nn.Module, batch: int, run: Run) -> nn.Module:
    """The UNet compiled for one batch size, or as it is where that fails (no Triton, no compiler)."""
    began, made = time.monotonic(), torch.compile(model, dynamic=False)
    inputs = torch.randn(batch, 4, 32, 32, device=run.device), torch.zeros(batch, device=run.device).long()
    context = torch.randn(batch, tokenizer.LENGTH, networks.UNET["cross_attention_dim"], device=run.device).bfloat16()
    added = {"text_embeds": context[:, 0, :256].float(), "time_ids": torch.zeros(batch, 6, device=run.device)}
    try:
        with run.autocast():
            out = made(*inputs, context, added_cond_kwargs=added, return_dict=False)[0]
            out.float().square().mean().backward()
        torch.cuda.synchronize()
    except Exception:
        log.exception("torch.compile failed; training goes on without it")
        made = model
    model.zero_grad(set_to_none=True)
    log.info("compiled in %.0f s", time.monotonic() - began)
    return made


def train_diffusion(run: Run, name: str, model: nn.Module, timesteps: int) -> None:
    """Predict the noise (epsilon) on SDXL's schedule; the loss weighted by Min-SNR (arXiv:2303.09556) with a floor."""
    model = lean(model.to(run.device, memory_format=channels_last(run)), run)
    stage = run.stage(name)
    forward = compiled(model, stage.batch, run) if run.compile and name == "unet" else model

    def loss(noisy, t, context, pooled, micro, noise, weights):
        added = {"text_embeds": pooled, "time_ids": micro}
        out = forward(noisy, t, context, added_cond_kwargs=added, return_dict=False)[0]
        return (weights * F.mse_loss(out.float(), noise, reduction="none").mean((1, 2, 3))).mean()

    pool = LatentPool(run, run.seed + 10, run.pool if name == "unet" else max(run.chunk, run.pool // 4))
    trainer = Trainer(name, model, loss, stage, run)
    finish(trainer, diffusion_batches(run, pool, stage.batch, timesteps, refiner=name == "refiner"))


def train_unet(run: Run) -> None:
    train_diffusion(run, "unet", networks.unet(), 1000)


def train_refiner(run: Run) -> None:
    train_diffusion(run, "refiner", networks.refiner_unet(), REFINER_TIMESTEPS)


def train_tiny(run: Run) -> None:
    """The tiny VAE of TAESD's layout: its decoder copies the VAE's pictures, its encoder the VAE's latents."""
    vae = lean(run.network("vae", networks.vae()).to(memory_format=channels_last(run)), run)
    model = networks.tiny_vae().to(run.device, memory_format=channels_last(run))
    stage = run.stage("tiny")

    def loss(images, latents, mean, target):
        decoded = model.decoder(latents)
        encoded = model.encoder(images)
        return picture_loss(decoded, target) + 0.1 * F.mse_loss(encoded.float(), mean)

    @torch.no_grad()
    def batches():
        for images in windows(run, run.seed + 5, 4 * stage.batch):
            with run.autocast():
                mean = vae.quant_conv(vae.encoder(images)).float().chunk(2, 1)[0] * networks.SCALING_FACTOR
                wobble = 0.3 * torch.rand(len(mean), 1, 1, 1, device=run.device) ** 2
                latents = mean + wobble * torch.randn_like(mean)
                target = decode(vae, latents).clamp(-1, 1)
            for _ in range(2):
                order = torch.randperm(len(images), device=run.device)
                for part in order.split(stage.batch):
                    yield images[part], latents[part], mean[part], target[part]

    finish(Trainer("tiny", model, loss, stage, run), batches())


TRAIN = {
    "text": train_text,
    "vae": train_vae,
    "decoder": train_decoder,
    "classifier": train_classifier,
    "unet": train_unet,
    "tiny": train_tiny,
    "refiner": train_refiner,
}


def unfinished(folder: Path, name: str) -> dict[str, torch.Tensor]:
    """The averaged weights of a stage that is still under way."""
    tensors = load_pieces(folder, f"{name}-state")
    raw = {k.removeprefix("raw."): v for k, v in tensors.items() if k.startswith("raw.")}
    return {k: v + tensors[f"ema.{k}"].float() for k, v in raw.items()}


def write_weights(run: Run, folder: Path) -> None:
    """The networks as float16 safetensors, and the losses."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in TRAIN:
        tensors = load_pieces(run.state, name) or unfinished(run.state, name)
        if name == "vae" and tensors:
            tensors |= load_pieces(run.state, "decoder")
        if tensors and name != "decoder":
            save_file({k: v.half().contiguous() for k, v in tensors.items()}, folder / f"{name}.safetensors")
    (folder / "losses.csv").write_bytes((run.state / "losses.csv").read_bytes())


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m sdxl_optim.demo_model.train", description=__doc__.split("\n")[0])
    parser.add_argument("--state", default="demo-state", help="folder of unfinished and finished stages")
    parser.add_argument("--out", default="demo-weights", help="folder for the finished float16 weights")
    parser.add_argument("--stage", nargs="+", choices=list(TRAIN), default=list(TRAIN))
    parser.add_argument(
        "--stop-after", type=float, default=float("inf"), help="seconds; the same command goes on later"
    )
    parser.add_argument("--fit", action="store_true", help="end each stage, its rate decayed, at --stop-after")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--workers", type=int, default=12 if torch.cuda.is_available() else 0)
    parser.add_argument("--start", type=Path, help="folder of finished weights to begin with")
    parser.add_argument("--more", action="store_true", help="train finished stages (not text) for their time once more")
    parser.add_argument("--wait", action="store_true", help="for stages before, until another process has trained them")
    parser.add_argument("--compile", action="store_true", help="compile the UNet: 100 s for steps a third shorter")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--toy", action="store_true", help="a few steps of everything, to try the code")
    options = parser.parse_args(arguments)
    options.compile = options.compile and options.device.startswith("cuda")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    run = Run(options)
    for name in TRAIN if options.start else ():
        path = options.start / f"{name}.safetensors"
        if path.is_file() and not run.is_done(name):
            save_pieces(load_file(path), run.state, name)
    for name in options.stage:
        if run.is_done(name) and not options.more:
            continue
        if run.is_over():
            break
        torch.manual_seed(run.seed)
        log.info("stage %s", name)
        TRAIN[name](run)
        if not run.is_done(name) or run.is_over():
            break
    write_weights(run, Path(options.out))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
