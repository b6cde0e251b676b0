"""What each optimisation costs in quality: `python -m demo_model.study --out DIR`.

Held prompts drawn by the product's own way over diffusers, with and without optimisations: SSIM to the stock picture of
the same sampler and steps, the caption check, and the UNet's work by the plan. `DIR/study.json` has a row a setting,
written as they are made, so that `--resume` goes on. `--docs` fills the tables and charts of docs/quality.md from it.
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from sdxl_optim.bench.measure import Stopwatch
from sdxl_optim.bench.quality import lpips
from sdxl_optim.files import write_atomically
from sdxl_optim.hosts.standalone import models as loading
from sdxl_optim.hosts.standalone.calibrate import calibrate
from sdxl_optim.hosts.standalone.deepcache import ScheduledDeepCache
from sdxl_optim.hosts.standalone.generate import Models, Request, make_plans
from sdxl_optim.hosts.standalone.run import STEP_TENSORS, DiffusersRun
from sdxl_optim.planning.plan import Plan
from sdxl_optim.settings import DeepCache, from_dict
from sdxl_optim.techniques.deepcache import calibration

from . import captions, check, evaluate, export, study_report

log = logging.getLogger("demo_model")
STEPS, CFG = 30, 5.0
CALIBRATION_PROMPTS = Path(__file__).with_name("card") / "calibration-prompts.txt"


@dataclass(frozen=True)
class Case:
    """One row. `settings` as the API takes them; `reference_steps`: of the stock picture that it is compared with."""

    group: str
    name: str
    settings: dict = field(default_factory=dict)
    sampler: str = "euler"
    steps: int = STEPS
    cfg: float = CFG
    reference_steps: int | None = None

    @property
    def reference(self) -> tuple[str, int, float]:
        return self.sampler, self.reference_steps or self.steps, CFG


def cutoff(stop: float) -> dict:
    return {"cfg_cutoff": {"enabled": True, "stop": stop}}


def deepcache(interval: int, **more) -> dict:
    return {"deepcache": {"enabled": True, "cache_interval": interval, **more}}


def freeu(version: int = 1, **more) -> dict:
    return {"freeu": {"enabled": True, "version": version, **more}}


TINY = {"vae": {"decoder": "tiny"}}


def cases() -> list[Case]:
    """All rows of the study, group by group."""
    out = [Case("stock", "30 steps"), Case("stock", "30 steps, CFG 1", cfg=1.0)]
    out += [Case("steps", f"{n} steps", steps=n, reference_steps=50) for n in (8, 10, 12, 15, 20, 25, 30, 40, 50)]
    out += [Case("cutoff", f"stop {s}", cutoff(s)) for s in (0.1, 0.25, 0.4, 0.5, 0.6, 0.75, 0.9)]
    for interval in (2, 3, 5, 8):
        for branch in (0, 1, 2, 4):
            settings = deepcache(interval, cache_branch_id=branch)
            out.append(Case("branch", f"interval {interval}, branch {branch}", settings))
    for sampler in ("euler", "dpm++-2m"):
        for steps in (20, 30, 50):
            for interval in (2, 3, 5):
                for mode in ("uniform", "nonuniform", "adaptive"):
                    name, settings = f"{sampler}, {steps} steps, interval {interval}, {mode}", deepcache(interval)
                    settings["deepcache"]["mode"] = mode
                    out.append(Case("mode", name, settings, sampler, steps))
    mild = {"b1": 1.1, "b2": 1.2, "s1": 0.9, "s2": 0.2}
    out += [Case("freeu", "version 1", freeu()), Case("freeu", "version 2", freeu(2))]
    out += [Case("freeu", "version 1, mild", freeu(**mild)), Case("freeu", "version 2, mild", freeu(2, **mild))]
    out += [
        Case("freeu", "version 1, first half", freeu(stop=0.5)),
        Case("freeu", "version 1, last half", freeu(start=0.5)),
    ]
    out.append(Case("tiny", "tiny VAE", TINY))
    adaptive = deepcache(3, mode="adaptive")
    out += [
        Case("together", "cutoff 0.75, DeepCache 3", cutoff(0.75) | deepcache(3)),
        Case("together", "cutoff 0.75, DeepCache 3 adaptive", cutoff(0.75) | adaptive),
        Case("together", "cutoff 0.5, DeepCache 3 adaptive", cutoff(0.5) | adaptive),
        Case("together", "cutoff 0.75, tiny VAE", cutoff(0.75) | TINY),
        Case("together", "DeepCache 3, tiny VAE", deepcache(3) | TINY),
        Case("together", "cutoff 0.75, DeepCache 3, tiny VAE", cutoff(0.75) | deepcache(3) | TINY),
        Case("together", "cutoff 0.75, DeepCache 3 adaptive, tiny VAE", cutoff(0.75) | adaptive | TINY),
        Case("together", "FreeU, cutoff 0.75, DeepCache 3, tiny VAE", freeu() | cutoff(0.75) | deepcache(3) | TINY),
    ]
    return out


class Work:
    """Floating-point operations of the networks, counted on the networks themselves, for one picture."""

    def __init__(self, models: Models):
        self._pipe, self._full = models.base, None
        self._cached: dict[int, float] = {}
        x = torch.zeros(1, 4, 32, 32, device=models.base.device)
        self._decoders = {
            "tiny": self._count(lambda: models.tiny_vae.decode(x)),
            "full": self._count(lambda: models.base.vae.decode(x)),
        }

    @staticmethod
    def _count(call) -> float:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            call()
        return counter.get_total_flops()

    def _row(self) -> float:
        """Of one row through the UNet as it is."""
        unet, device = self._pipe.unet, self._pipe.device
        context = torch.zeros(1, 77, unet.config.cross_attention_dim, device=device)
        numbers = {"text_embeds": context[:, 0, :256], "time_ids": torch.zeros(1, 6, device=device)}
        x = torch.zeros(1, 4, 32, 32, device=device)
        return self._count(lambda: unet(x, 1, context, added_cond_kwargs=numbers))

    def _cached_row(self, branch: int) -> float:
        if branch not in self._cached:
            helper = ScheduledDeepCache(self._pipe, DeepCache(enabled=True, cache_branch_id=branch))
            helper.enable()
            try:
                for cached in (False, True):
                    helper.begin(0, cached, 1, 1, ())
                    self._cached[branch] = self._row()
            finally:
                helper.disable()
        return self._cached[branch]

    def decoding(self, decoder: str) -> float:
        """GFLOP for one picture by the decoder, full or tiny."""
        return self._decoders[decoder] / 1e9

    def sampling(self, plan: Plan, steps: int, with_uncond: bool) -> float:
        """GFLOP of the UNet for one picture by `plan`."""
        self._full = self._full or self._row()
        total = 0.0
        for i in range(steps):
            step = plan.step(i)
            rows = 2 if with_uncond and not step.cut else 1
            total += rows * (self._cached_row(plan.deepcache.cache_branch_id) if step.cached else self._full)
        return total / 1e9


class Study:
    """Draws cases on one device and measures them."""

    def __init__(self, weights: Path, device: str, prompts: int, batch: int, recalibrate: bool):
        self.device = loading.check_device(device)
        self.models = load_models(weights, self.device, recalibrate)
        self.judge = evaluate.classifier(weights).to(self.device)
        self.prompts, self.batch = captions.held_prompts(prompts), batch
        self.named = [captions.parse(p)[0] for p in self.prompts]
        self.work = Work(self.models)
        self._references: dict[tuple, torch.Tensor] = {}

    def row(self, case: Case) -> dict:
        """The case's numbers, ready for JSON."""
        pictures, found = self._draw(case)
        reference = self._reference(case)
        likeness = evaluate.ssim(pictures, reference)
        stock = Case("stock", "", sampler=case.sampler, steps=case.steps)
        distances = [lpips(*map(_pixels, pair)) for pair in zip(reference, pictures, strict=True)]
        numbers = {
            "prompts": len(self.prompts),
            "work": found["gflop"] / self._gflop(stock),
            "ssim": likeness.mean().item(),
            "ssim_least": likeness.min().item(),
            "lpips": None if None in distances else float(np.mean(distances)),
            "passes": self._passes(pictures),
        }
        return asdict(case) | found | numbers

    @torch.no_grad()
    def _passes(self, pictures: torch.Tensor) -> int:
        seen = torch.cat([self.judge(part) for part in pictures.split(self.batch)])
        return sum(check.judge(check.see(row), named).passed for row, named in zip(seen.cpu(), self.named, strict=True))

    def _reference(self, case: Case) -> torch.Tensor:
        """The stock pictures that a case is compared with, [N, 3, 256, 256], 0 to 1."""
        if case.reference not in self._references:
            sampler, steps, cfg = case.reference
            self._references[case.reference] = self._draw(Case("stock", "", {}, sampler, steps, cfg))[0]
        return self._references[case.reference]

    def _plan(self, case: Case, batch: int) -> Plan:
        loading.use_sampler(self.models.base, case.sampler)
        request = Request("", steps=case.steps, cfg=case.cfg, batch=batch)
        return make_plans(self.models, request, _settings(case))["base"]

    def _gflop(self, case: Case) -> float:
        return self.work.sampling(self._plan(case, 1), case.steps, case.cfg > 1)

    @torch.no_grad()
    def _draw(self, case: Case) -> tuple[torch.Tensor, dict]:
        """Pictures [N, 3, 256, 256], 0 to 1, and what drawing them took."""
        pipe, settings = self.models.base, _settings(case)
        decoder = "tiny" if settings.vae.decoder == "tiny" else "full"
        vae = self.models.tiny_vae if decoder == "tiny" else pipe.vae
        pictures, watch = [], Stopwatch(self.device)
        for start in range(0, len(self.prompts), self.batch):
            part = self.prompts[start : start + self.batch]
            run = DiffusersRun(self._plan(case, len(part)), "base", watch)
            with run.attached(pipe):
                latents = pipe(
                    part,
                    num_inference_steps=case.steps,
                    guidance_scale=run.guidance_scale(case.cfg),
                    generator=[torch.Generator("cpu").manual_seed(start + i) for i in range(len(part))],
                    callback_on_step_end=run.after_step,
                    callback_on_step_end_tensor_inputs=STEP_TENSORS,
                    output_type="latent",
                ).images
            if not run.report.as_predicted:
                raise RuntimeError(f"{case.name}: not as planned: {', '.join(run.report.facts())}")
            watch.lap("prepare")
            pieces = [vae.decode(piece / vae.config.scaling_factor).sample for piece in latents.split(8)]
            pictures.append((torch.cat(pieces).float() / 2 + 0.5).clamp(0, 1))
            watch.lap("decode")
        seconds = {k: round(v / len(self.prompts), 5) for k, v in watch.seconds.items()}  # of a picture
        counts = run.report.counts
        found = {"full": counts.full, "cached": counts.cached, "rows": counts.rows / counts.stock_rows}
        found |= {"gflop": self._gflop(case), "decoding": self.work.decoding(decoder), "seconds": seconds}
        return torch.cat(pictures), found


def _settings(case: Case):
    return from_dict({"enabled": True, **case.settings})


def _pixels(picture: torch.Tensor) -> np.ndarray:
    return (picture.permute(1, 2, 0) * 255).round().byte().cpu().numpy()


def load_models(weights: Path, device: torch.device, recalibrate: bool) -> Models:
    """The demo model as a user gets it, float32. recalibrate: measure its calibration and keep it in `weights`."""
    with tempfile.TemporaryDirectory() as folder:
        base = export.write_diffusers(Path(folder, "base"), weights)
        tiny = export.write_tiny_vae(Path(folder, "tiny"), weights)
        pipe = loading.load_base(str(base), device, torch.float32)
        models = Models(pipe, tiny_vae=loading.load_tiny_vae(str(tiny), device, torch.float32))
    pipe.set_progress_bar_config(disable=True)
    if recalibrate:
        began, prompts = time.monotonic(), CALIBRATION_PROMPTS.read_text("utf-8").splitlines()
        calibration.save(calibrate(pipe, export.NAME, prompts), weights / calibration.ENDING)
        log.info("calibrated in %.0f s", time.monotonic() - began)
    models.calibration = calibration.load(weights / calibration.ENDING), None
    return models


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} processor, {torch.get_num_threads()} threads"


def make(options: argparse.Namespace, path: Path, rows: list[dict]) -> None:
    """Draw what is missing in `rows` and write all of them to `path`."""
    done = {(row["group"], row["name"]) for row in rows}
    left = [c for c in cases() if (c.group, c.name) not in done and (not options.group or c.group in options.group)]
    if not left:
        return
    study, began = Study(options.weights, options.device, options.prompts, options.batch, options.calibrate), None
    study.row(Case("stock", "warm-up", steps=2))
    for k, case in enumerate(left):
        began = time.monotonic()
        rows.append(study.row(case) | {"device": device_name(study.device)})
        write_atomically(path, json.dumps(rows, indent=1) + "\n")
        row, seconds = rows[-1], time.monotonic() - began
        text = "%d of %d: %s, %s: work %.2f, SSIM %.4f, %d of %d pass; %.1f s"
        log.info(
            text,
            k + 1,
            len(left),
            case.group,
            case.name,
            row["work"],
            row["ssim"],
            row["passes"],
            row["prompts"],
            seconds,
        )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m demo_model.study", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("study"), help="folder of study.json and the charts")
    parser.add_argument("--weights", type=Path, default=export.WEIGHTS)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    parser.add_argument("--resume", action="store_true", help="keep the rows that are there")
    parser.add_argument("--prompts", type=int, default=64, help="fewer to try it out")
    parser.add_argument("--batch", type=int, default=None, help="pictures at a time; 64 on a GPU, else 8")
    parser.add_argument("--group", nargs="+", choices=sorted({c.group for c in cases()}), help="these alone")
    parser.add_argument("--calibrate", action="store_true", help="measure the model's calibration first, and keep it")
    parser.add_argument("--docs", type=Path, help="a Markdown file whose tables and charts are filled")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    options.batch = options.batch or (64 if loading.check_device(options.device).type == "cuda" else 8)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "study.json"
    if path.is_file() and not options.resume:
        parser.error(f"--out: {str(path)!r} exists; --resume goes on from it")
    rows = json.loads(path.read_text("utf-8")) if path.is_file() else []
    make(options, path, rows)
    study_report.write_charts(rows, options.out)
    if options.docs:
        study_report.fill(options.docs, rows)
    sys.stdout.write(study_report.summary(rows) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
