"""Train the demo model: `python -m demo_model.train --state DIR --out DIR`.

Six stages: text encoders, VAE, UNet, and beside it classifier and refiner, then the tiny VAE. On a GPU they run in
three processes that wait for each other, so that what has to be compiled is compiled meanwhile, and end within
`--within` seconds in all: the UNet has what the others leave. A run that was stopped (`--stop-after`, or killed) goes
on where its state in `--state` ends; that is kept in pieces of at most 16 MB.
A GPU is meant: `--toy` runs the same code in a minute on a CPU and teaches nothing.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from .train_check import train_classifier
from .train_text import train_text
from .train_tiny import train_tiny
from .train_unet import train_refiner, train_unet
from .train_vae import train_vae
from .trainer import Run, Stage, load_pieces, log, unfinished

TRAIN = {
    "text": train_text,
    "vae": train_vae,
    "classifier": train_classifier,
    "refiner": train_refiner,
    "unet": train_unet,
    "tiny": train_tiny,
}
STAGES = {
    "text": Stage(1024, 6000, 60, 1e-3, ema=0.99),
    "vae": Stage(16, 30000, 210, 1e-3),
    "classifier": Stage(256, 8000, 40, 2e-3, ema=0.99),
    "refiner": Stage(256, 8000, 30, 1e-3),
    "unet": Stage(256, 100000, 620, 1e-3, ema=0.9993),
    "tiny": Stage(16, 20000, 65, 1e-3),
}
RESERVE = 95  # seconds before the deadline that are the tiny VAE's and the writing's
LANES = (("vae", "classifier", "refiner"), ("text",), ("unet", "tiny"))  # processes beside each other
DELAYS = (0, 0, 30)  # seconds: the VAE is compiled first, for it is waited for


def train_stages(run: Run, names: list[str]) -> bool:
    """Train in this process what is not finished. Returns whether all is."""
    for name in names:
        if run.is_done(name):
            continue
        if run.is_over():
            return False
        torch.manual_seed(run.seed)
        log.info("stage %s", name)
        stage = replace(STAGES[name], batch=4, steps=2, seconds=1e9) if run.toy else STAGES[name]
        TRAIN[name](run, stage)
        if not run.is_done(name):
            return False
    return True


class Clock:
    """Seconds that this training has taken, over all its runs, kept in the state."""

    def __init__(self, state: Path):
        self._path, self._began = state / "clock.json", time.monotonic()
        self._before = json.loads(self._path.read_text("utf-8"))["seconds"] if self._path.is_file() else 0.0

    def seconds(self) -> float:
        return self._before + time.monotonic() - self._began

    def save(self) -> None:
        self._path.write_text(json.dumps({"seconds": round(self.seconds(), 1)}), "utf-8")


def train_lanes(options: argparse.Namespace, arguments: list[str]) -> bool:
    """Train everything, each lane in a process of its own; one that fails is started once more."""
    state = Path(options.state)
    state.mkdir(parents=True, exist_ok=True)
    clock, began = Clock(state), time.monotonic()
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(state.resolve() / "compiled"), "PYTHONUNBUFFERED": "1"}
    lanes: dict[int, subprocess.Popen] = {}
    tries = [0] * len(LANES)

    def start(k: int) -> None:
        tries[k] += 1
        left = ["--within", str(options.within - clock.seconds())]
        left += ["--stop-after", str(options.stop_after - (time.monotonic() - began))]
        command = [sys.executable, "-m", "demo_model.train", *arguments, *left, "--wait"]
        lanes[k] = subprocess.Popen([*command, "--stage", *LANES[k]], env=environment)

    waiting = dict(enumerate(DELAYS))
    try:
        while waiting or lanes:
            for k in [k for k, delay in waiting.items() if time.monotonic() - began >= delay]:
                del waiting[k]
                start(k)
            for k, code in [(k, process.poll()) for k, process in lanes.items()]:
                if code is None:
                    continue
                del lanes[k]
                if code and tries[k] < 2:
                    log.error("the process of %s ended with %d; it is started once more", ", ".join(LANES[k]), code)
                    start(k)
                elif code:
                    log.error("the process of %s ended with %d again", ", ".join(LANES[k]), code)
            clock.save()
            time.sleep(0.5)
    finally:
        for process in lanes.values():
            process.terminate()
    log.info("%.0f s in all", clock.seconds())
    return all((state / f"{name}-0.safetensors").is_file() for name in TRAIN)


def write_weights(state: Path, folder: Path) -> None:
    """The networks as float16 safetensors, and the losses."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in TRAIN:
        tensors = load_pieces(state, name) or unfinished(state, name)
        if tensors:
            save_file({k: v.half().contiguous() for k, v in tensors.items()}, folder / f"{name}.safetensors")
    if (state / "losses.csv").is_file():
        (folder / "losses.csv").write_bytes((state / "losses.csv").read_bytes())


def parser() -> argparse.ArgumentParser:
    cuda, inf = torch.cuda.is_available(), float("inf")
    out = argparse.ArgumentParser(prog="python -m demo_model.train", description=__doc__.split("\n")[0])
    out.add_argument("--state", default="demo-state", help="folder of unfinished and finished stages")
    out.add_argument("--out", default="demo-weights", help="folder for the finished float16 weights")
    out.add_argument("--stage", nargs="+", choices=list(TRAIN), help="train these alone, in this process")
    out.add_argument("--within", type=float, default=1060, help="seconds for the whole training")
    out.add_argument("--stop-after", type=float, default=inf, help="seconds; the same command goes on later")
    out.add_argument("--device", default="cuda" if cuda else "cpu")
    out.add_argument("--workers", type=int, default=6 if cuda else 0, help="processes that make scenes, for each stage")
    out.add_argument("--wait", action="store_true", help="for stages before, until another process has trained them")
    out.add_argument("--no-compile", dest="compile", action="store_false", help="compile neither VAE nor UNet")
    out.add_argument("--seed", type=int, default=0)
    out.add_argument("--toy", action="store_true", help="a few steps of everything, to try the code")
    return out


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parser().parse_args(arguments)
    cuda = options.device.startswith("cuda")
    options.compile = options.compile and cuda
    if not cuda:
        options.within = float("inf")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    if cuda and not options.stage:
        finished = train_lanes(options, arguments)
    else:
        run = Run(options)
        run.reserve = RESERVE
        finished = train_stages(run, options.stage or list(TRAIN))
        if options.wait:
            return 0  # the process that started this one writes the weights
    write_weights(Path(options.state), Path(options.out))
    log.info("weights in %s; %s", options.out, "all stages done" if finished else "not all stages are done yet")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
