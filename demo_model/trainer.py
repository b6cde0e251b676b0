"""What the stages of the demo model's training share: a run's folders and time, the training loop, saved pieces."""

from __future__ import annotations

import argparse
import csv
import json
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save
from torch import nn

from sdxl_optim.files import write_atomically

log = logging.getLogger("demo_model")
PIECE = 15_500_000  # bytes of one file of state
SAVE_EVERY = 45  # seconds
ABSENT = -100  # a label that no loss looks at


@dataclass(frozen=True)
class Stage:
    """How long and how a network is trained: until `steps` or `seconds` are over, with its rate decayed."""

    batch: int
    steps: int
    seconds: float
    rate: float
    decay: float = 0.5  # the last share, in which the rate falls to zero
    ema: float = 0.998


class Run:
    """What the stages share: device, folders, time, the log of losses and the finished networks."""

    def __init__(self, options: argparse.Namespace):
        self.device = torch.device(options.device)
        self.state, self.seed, self.toy = Path(options.state), options.seed, options.toy
        self.state.mkdir(parents=True, exist_ok=True)
        self.workers, self.compile, self.wait = options.workers, options.compile, options.wait
        self.began = time.monotonic()
        self.deadline = self.began + options.within  # the whole training's
        self.end = self.began + min(options.stop_after, options.within)
        self.reserve = 0.0  # seconds before the deadline that the UNet leaves
        self.every = 2 if self.toy else 100
        self.chunk = 8 if self.toy else 1024

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    def is_over(self) -> bool:
        return time.monotonic() > self.end

    def await_stage(self, name: str) -> None:
        while self.wait and not self.is_done(name) and not self.is_over():
            time.sleep(0.2)

    def write(self, stage: str, step: int, seconds: float, loss: float) -> None:
        path = self.state / "losses.csv"
        with path.open("a", newline="", encoding="utf-8") as file:
            if not file.tell():
                csv.writer(file).writerow(["stage", "step", "seconds", "loss"])
            csv.writer(file).writerow([stage, step, f"{seconds:.1f}", f"{loss:.5f}"])

    def is_done(self, name: str) -> bool:
        return (self.state / f"{name}-0.safetensors").is_file()

    def network(self, name: str, model: nn.Module) -> nn.Module:
        """A finished network, frozen, on the run's device. Raises FileNotFoundError."""
        self.await_stage(name)
        tensors = load_pieces(self.state, name)
        if not tensors:
            raise FileNotFoundError(f"stage: {name!r} is not trained yet; run --stage {name} first")
        model.load_state_dict(tensors)
        return model.to(self.device).eval().requires_grad_(False)

    def to_device(self, chunk: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {k: v.to(self.device, non_blocking=True) for k, v in chunk.items()}

    def autocast(self):
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.cuda)

    @property
    def layout(self) -> torch.memory_format:
        return torch.channels_last if self.cuda else torch.contiguous_format


def lean(model: nn.Module, run: Run) -> nn.Module:
    """On a GPU: normalise in the activations' own bfloat16, which autocast would widen to float32."""

    def forward(self, x):
        with torch.autocast(x.device.type, enabled=False):
            weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
            if isinstance(self, nn.GroupNorm):
                return F.group_norm(x, self.num_groups, weight, bias, self.eps)
            return F.layer_norm(x, self.normalized_shape, weight, bias, self.eps)

    for module in model.modules():
        if run.cuda and isinstance(module, nn.GroupNorm | nn.LayerNorm):
            module.forward = forward.__get__(module)
    return model


def compiled(function: Callable, inputs: tuple, model: nn.Module, run: Run) -> Callable:
    """`function` compiled for inputs of these shapes, or as it is where that fails (no Triton, no compiler).

    function: tensors -> a tuple of tensors, forwards through `model`. Compiled and tried with a backward pass, too.
    """
    if not run.compile:
        return function
    began, made = time.monotonic(), torch.compile(function, dynamic=False)
    try:
        for _ in range(2):
            with run.autocast():
                sum(out.float().square().mean() for out in made(*inputs)).backward()
        if run.cuda:
            torch.cuda.synchronize()
    except Exception:
        log.exception("torch.compile failed; training goes on without it")
        made = function
    model.zero_grad(set_to_none=True)
    log.info("compiled in %.0f s", time.monotonic() - began)
    return made


def laid_out_as(p: torch.Tensor, grad: torch.Tensor | None) -> torch.Tensor | None:
    """`grad` with the strides of `p`, as the optimizer's kernels for many tensors want them.

    A 1x1 convolution's weight in channels_last has two sets of strides for the same order in memory; kernels differ in
    which they give, and one that differs makes the optimizer go through all tensors one by one.
    """
    if grad is None or grad.stride() == p.stride():
        return grad
    real = [i for i, n in enumerate(p.shape) if n > 1]
    if all(grad.stride(i) == p.stride(i) for i in real):
        return grad.as_strided(p.shape, p.stride())
    return torch.empty_like(p).copy_(grad)


class Trainer:
    """AdamW, clipped gradients, EMA weights; on a GPU the whole step is one CUDA graph.

    `loss(*batch)` sees `model` in bfloat16 autocast on a GPU and returns what to minimise and what to log. The rate
    rises over 200 steps, stays, and falls to zero over the stage's last share. `along`: the stage's progress, 0 to 1,
    a tensor. `prefix`: of the parameters that are the network; others (heads) are trained beside it and left behind.
    """

    def __init__(self, name: str, model: nn.Module, loss: Callable, stage: Stage, run: Run, prefix: str = ""):
        self.name, self.model, self.loss, self.stage, self.run = name, model, loss, stage, run
        self.prefix = prefix
        self.names = [k for k, p in model.named_parameters() if p.requires_grad]
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.averages = [p.detach().clone() for p in self.parameters]
        self.rate, self.decay, self.along, self.total = (torch.zeros((), device=run.device) for _ in range(4))
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=self.rate, betas=(0.9, 0.99), weight_decay=0.01, capturable=run.cuda, fused=run.cuda
        )
        self.rate = self.optimizer.param_groups[0]["lr"]
        self.step = self.fresh = 0
        self.seconds = 0.0
        self.graph: torch.cuda.CUDAGraph | bool | None = None  # False: this one can't be captured

    def _step(self, *batch):
        self.optimizer.zero_grad(set_to_none=True)
        with self.run.autocast():
            loss, shown = self.loss(*batch)
        loss.backward()
        for p in self.parameters:
            p.grad = laid_out_as(p, p.grad)
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0, foreach=True)
        self.optimizer.step()
        with torch.no_grad():
            torch._foreach_sub_(self.averages, self.parameters)
            torch._foreach_mul_(self.averages, self.decay)
            torch._foreach_add_(self.averages, self.parameters)
            self.total += shown.detach()

    def _call(self, batch):
        if not self.run.cuda or self.graph is False:
            return self._step(*batch)
        if self.graph is None and not self._capture(batch):
            return None
        for held, new in zip(self.inputs, batch, strict=True):
            held.copy_(new)
        self.graph.replay()
        return None

    def _capture(self, batch) -> bool:
        """Capture the step as a graph; where that fails, steps are run one kernel after the other."""
        self.inputs = [b.clone() for b in batch]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            try:
                self._step(*self.inputs)
            except RuntimeError:
                log.exception("%s: trying again with the optimizer's kernels unfused", self.name)
                self.optimizer.param_groups[0].update(fused=False, foreach=True)
            for _ in range(3):
                self._step(*self.inputs)
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        try:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self._step(*self.inputs)
        except Exception:
            log.exception("%s: the step can't be captured; training goes on without", self.name)
            self.graph = False
            with torch.cuda.graph(torch.cuda.CUDAGraph()):  # a good capture's end puts the random generator right
                torch.zeros(1, device=self.run.device)
            return False
        self.graph = graph
        log.info("%s: step captured", self.name)
        return True

    def progress(self) -> float:
        return min(1.0, max(self.step / self.stage.steps, self.seconds / self.stage.seconds))

    def train(self, batches: Iterator[tuple]) -> bool:
        """Run to the stage's end (True), at the latest before the deadline, or until the time is up (False)."""
        left = max(1.0, self.run.deadline - time.monotonic() - 3)
        self.stage = replace(self.stage, seconds=min(self.stage.seconds, self.seconds + left))
        began, logged, told = time.monotonic() - self.seconds, self.step, time.monotonic()
        saved = time.monotonic()
        while self.progress() < 1 and not self.run.is_over():
            warm = min(1.0, (self.fresh + 1) / min(200, 1 + self.stage.steps // 10))
            self.rate.fill_(self.stage.rate * warm * min(1.0, (1 - self.progress()) / self.stage.decay))
            self.decay.fill_(min(self.stage.ema, (1 + self.step) / (10 + self.step)))
            self.along.fill_(self.progress())
            self._call(next(batches))
            self.step += 1
            self.fresh += 1
            if self.step % 8 == 0 and self.run.cuda:
                torch.cuda.current_stream().synchronize()
            self.seconds = time.monotonic() - began
            if self.step - logged >= self.run.every or self.progress() >= 1:
                loss = self.total.item() / (self.step - logged)
                self.run.write(self.name, self.step, self.seconds, loss)
                if time.monotonic() - told > 10 or self.progress() >= 1 or logged == 0:
                    told, text = time.monotonic(), "%s: %3.0f %%, step %d, %.0f s, loss %.5f"
                    log.info(text, self.name, 100 * self.progress(), self.step, self.seconds, loss)
                logged = self.step
                self.total.zero_()
                if time.monotonic() - saved > SAVE_EVERY:
                    self.save(self.run.state)
                    saved = time.monotonic()
        return self.progress() >= 1

    def averaged(self) -> dict[str, torch.Tensor]:
        """The network's state with its EMA weights, float32 on the CPU."""
        state = {k: v.detach().float().cpu() for k, v in self.model.state_dict().items()}
        state |= {k: v.float().cpu() for k, v in zip(self.names, self.averages, strict=True)}
        return {k.removeprefix(self.prefix): v for k, v in state.items() if k.startswith(self.prefix)}

    def save(self, folder: Path) -> None:
        """Weights in float32 and EMA as a float16 difference; Adam's moments are left behind (see `resume`)."""
        tensors = {}
        for name, p, average in zip(self.names, self.parameters, self.averages, strict=True):
            tensors["raw." + name] = p.detach().float().cpu()
            tensors["ema." + name] = (average - p.detach()).half().cpu()
        save_pieces(tensors, folder, f"{self.name}-state")
        progress = {"step": self.step, "seconds": self.seconds, "prefix": self.prefix}
        (folder / f"{self.name}-state.json").write_text(json.dumps(progress), "utf-8")

    def resume(self, folder: Path) -> None:
        """Go on from `save`, with fresh moments and a short warm-up; else from nothing."""
        tensors = load_pieces(folder, f"{self.name}-state")
        if not tensors:
            return
        with torch.no_grad():
            for name, p, average in zip(self.names, self.parameters, self.averages, strict=True):
                p.copy_(tensors["raw." + name])
                average.copy_(p + tensors["ema." + name].to(p))
        progress = json.loads((folder / f"{self.name}-state.json").read_text("utf-8"))
        self.step, self.seconds = progress["step"], progress["seconds"]
        log.info("%s goes on at step %d", self.name, self.step)


def finish(trainer: Trainer, batches: Iterator[tuple], change: Callable | None = None) -> None:
    """Train; then save the averaged weights (as `change` leaves them), or the state if the time was up."""
    run, name = trainer.run, trainer.name
    if trainer.train(batches):
        tensors = trainer.averaged()
        save_pieces(change(tensors) if change else tensors, run.state, name)
        for old in run.state.glob(f"{name}-state*"):
            old.unlink()
        log.info("%s: done after %d steps", name, trainer.step)
    else:
        trainer.save(run.state)
        log.info("%s: stopped at step %d; the same command goes on", name, trainer.step)


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
    for i, piece in reversed(list(enumerate(pieces))):  # the first one last: a process that waits looks for it
        write_atomically(folder / f"{name}-{i}.safetensors", save(piece))


def load_pieces(folder: Path, name: str) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob(f"{name}-[0-9].safetensors")):
        tensors |= load_file(path)
    return {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}


def unfinished(folder: Path, name: str) -> dict[str, torch.Tensor]:
    """The averaged weights of a stage that is still under way."""
    tensors = load_pieces(folder, f"{name}-state")
    if not tensors:
        return {}
    start = "raw." + json.loads((folder / f"{name}-state.json").read_text("utf-8"))["prefix"]
    raw = {k.removeprefix("raw."): v for k, v in tensors.items() if k.startswith(start)}
    prefix = start.removeprefix("raw.")
    return {k.removeprefix(prefix): v + tensors[f"ema.{k}"].float() for k, v in raw.items()}
