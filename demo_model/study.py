"""What each optimisation costs in quality: `python -m demo_model.study --out DIR`.

Held prompts drawn by the benchmark's host over diffusers, with and without optimisations: SSIM to the stock picture of
the same sampler and steps, the caption check, and the UNet's work by the plan. What is compared with one stock picture
is a result of the benchmark in a folder of its own in DIR, so that `--resume` goes on; `DIR/study.json` has the mean of
each setting. `--docs` fills the tables and charts of docs/quality.md from it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from sdxl_optim.bench.cases import Case, Prompt
from sdxl_optim.bench.measure import PeakMemory, Stopwatch
from sdxl_optim.bench.report import summary
from sdxl_optim.bench.results import Results, Row
from sdxl_optim.bench.runner import Runner
from sdxl_optim.files import write_atomically
from sdxl_optim.hosts.standalone import models as loading
from sdxl_optim.hosts.standalone.bench import DiffusersHost
from sdxl_optim.hosts.standalone.calibrate import calibrate
from sdxl_optim.hosts.standalone.generate import Models, Request, Result, decoder_as_planned, make_plans
from sdxl_optim.hosts.standalone.request_facts import request_facts
from sdxl_optim.hosts.standalone.run import STEP_TENSORS, DiffusersRun
from sdxl_optim.planning.plan import plan_request
from sdxl_optim.report import JobReport
from sdxl_optim.sentences import happened
from sdxl_optim.settings import from_dict, to_sparse_dict
from sdxl_optim.techniques.deepcache import calibration

from . import captions, check, evaluate, export, study_report
from .work import Work

log = logging.getLogger("demo_model")
STEPS, CFG = 30, 5.0
REFERENCE = "reference"
GROUPS = ("branch", "cutoff", "freeu", "mode", "steps", "stock", "tiny", "together")
CALIBRATION_PROMPTS = Path(__file__).with_name("card") / "calibration-prompts.txt"


@dataclass(frozen=True)
class Part:
    """Cases that are compared with one stock picture, of this sampler and so many steps. Their names are
    "group: name"."""

    sampler: str
    steps: int
    cases: tuple[Case, ...]

    @property
    def folder(self) -> str:
        return f"{self.sampler}-{self.steps}"


def study_case(group: str, name: str, settings: dict | None = None, **more) -> Case:
    """settings: as the API takes them."""
    return Case(f"{group}: {name}", from_dict(settings) if settings else Case("").settings, **more, together=True)


def cutoff(stop: float) -> dict:
    return {"cfg_cutoff": {"enabled": True, "stop": stop}}


def deepcache(interval: int, **more) -> dict:
    return {"deepcache": {"enabled": True, "cache_interval": interval, **more}}


def freeu(version: int = 1, **more) -> dict:
    return {"freeu": {"enabled": True, "version": version, **more}}


TINY = {"vae": {"decoder": "tiny"}}


def parts() -> list[Part]:
    """All of the study."""
    out = []
    for sampler in ("euler", "dpm++-2m"):
        for steps in (20, 30, 50):
            cases = _modes(sampler, steps)
            if (sampler, steps) == ("euler", STEPS):
                cases += _main_cases()
            if (sampler, steps) == ("euler", 50):
                cases += [study_case("steps", f"{n} steps", steps=n) for n in (8, 10, 12, 15, 20, 25, 30, 40, 50)]
            out.append(Part(sampler, steps, tuple(cases)))
    return out


def _modes(sampler: str, steps: int) -> list[Case]:
    return [
        study_case("mode", f"{sampler}, {steps} steps, interval {interval}, {mode}", deepcache(interval, mode=mode))
        for interval in (2, 3, 5)
        for mode in ("uniform", "nonuniform", "adaptive")
    ]


def _main_cases() -> list[Case]:
    out = [study_case("stock", "30 steps"), study_case("stock", "30 steps, CFG 1", cfg=1.0)]
    out += [study_case("cutoff", f"stop {s}", cutoff(s)) for s in (0.1, 0.25, 0.4, 0.5, 0.6, 0.75, 0.9)]
    for interval in (2, 3, 5, 8):
        for branch in (0, 1, 2, 4):
            settings = deepcache(interval, cache_branch_id=branch)
            out.append(study_case("branch", f"interval {interval}, branch {branch}", settings))
    mild = {"b1": 1.1, "b2": 1.2, "s1": 0.9, "s2": 0.2}
    variants = {
        "version 1": freeu(),
        "version 2": freeu(2),
        "version 1, mild": freeu(**mild),
        "version 2, mild": freeu(2, **mild),
        "version 1, first half": freeu(stop=0.5),
        "version 1, last half": freeu(start=0.5),
    }
    out += [study_case("freeu", name, settings) for name, settings in variants.items()]
    out.append(study_case("tiny", "tiny VAE", TINY))
    adaptive = deepcache(3, mode="adaptive")
    together = {
        "cutoff 0.75, DeepCache 3": cutoff(0.75) | deepcache(3),
        "cutoff 0.75, DeepCache 3 adaptive": cutoff(0.75) | adaptive,
        "cutoff 0.5, DeepCache 3 adaptive": cutoff(0.5) | adaptive,
        "cutoff 0.75, tiny VAE": cutoff(0.75) | TINY,
        "DeepCache 3, tiny VAE": deepcache(3) | TINY,
        "cutoff 0.75, DeepCache 3, tiny VAE": cutoff(0.75) | deepcache(3) | TINY,
        "cutoff 0.75, DeepCache 3 adaptive, tiny VAE": cutoff(0.75) | adaptive | TINY,
        "FreeU, cutoff 0.75, DeepCache 3, tiny VAE": freeu() | cutoff(0.75) | deepcache(3) | TINY,
    }
    return out + [study_case("together", name, settings) for name, settings in together.items()]


class StudyHost(DiffusersHost):
    """Draws `batch` prompts at a time, as a network this small needs on a graphics card."""

    def __init__(self, models: Models, part: Part, batch: int, classifier: check.Classifier):
        super().__init__(models, Request("", steps=part.steps, cfg=CFG), export.NAME, self._shows)
        loading.use_sampler(models.base, part.sampler)
        self._batch, self._classifier = batch, classifier

    @torch.no_grad()
    def _shows(self, image: Image.Image, prompt: str) -> bool:
        logits = self._classifier(check.to_tensor(image).to(self.device))[0]
        return check.judge(check.see(logits.cpu()), captions.parse(prompt)[0]).passed

    def make_together(self, case: Case, prompts: Sequence[Prompt]) -> list[tuple[Image.Image, Row, str]]:
        some = [prompts[start : start + self._batch] for start in range(0, len(prompts), self._batch)]
        return [made for part in some for made in self._drawn(case, part)]

    def _drawn(self, case: Case, prompts: Sequence[Prompt]) -> list[tuple[Image.Image, Row, str]]:
        """One call of the pipeline. Raises RuntimeError where the report is not as planned."""
        pipe, request, n = self.models.base, self._request(case, prompts[0]), len(prompts)
        request = dataclasses.replace(request, batch=n)
        job, watch = JobReport(), Stopwatch(self.device)
        run = DiffusersRun(make_plans(self.models, request, case.settings)["base"], "base", watch)
        job.add_pass(0, run.report)
        decoder = decoder_as_planned(
            pipe, self.models.tiny_vae, plan_request(case.settings, request_facts(self.models)), job
        )
        with PeakMemory(self.device) as peak, decoder, run.attached(pipe):
            images = pipe(
                [p.text for p in prompts],
                num_inference_steps=request.steps,
                guidance_scale=run.guidance_scale(request.cfg),
                generator=[torch.Generator("cpu").manual_seed(p.seed) for p in prompts],
                callback_on_step_end=run.after_step,
                callback_on_step_end_tensor_inputs=STEP_TENSORS,
            ).images
            watch.lap("decode")
        if not run.report.as_predicted:
            raise RuntimeError(f"not as planned: {', '.join(map(str, happened(run.report)))}")
        job.seconds = sum(watch.seconds.values())
        row = self._row(request, Result(images, job, watch.seconds), [run.report], peak, share=n)
        row = dataclasses.replace(row, rows=row.rows // n, stock_rows=row.stock_rows // n)
        return [
            (image, self._checked(dataclasses.replace(row, seed=p.seed), image, p), "")
            for image, p in zip(images, prompts, strict=True)
        ]


def described(case: Case, part: Part) -> dict:
    """What was asked for, ready for JSON."""
    group, _, name = case.name.partition(": ")
    return {
        "group": group,
        "name": name,
        "settings": to_sparse_dict(case.settings),
        "sampler": part.sampler,
        "steps": case.steps or part.steps,
        "cfg": CFG if case.cfg is None else case.cfg,
        "reference_steps": part.steps,
    }


def found(made: Sequence[Row]) -> dict:
    """A case's numbers, ready for JSON: of its pictures, which differ by their prompts alone."""
    (mean,) = summary(made)
    rest = mean.seconds - mean.sampling_seconds - mean.decode_seconds
    seconds = {"prepare": rest, "sampling": mean.sampling_seconds, "decode": mean.decode_seconds}
    return {
        "full": mean.full,
        "cached": mean.cached,
        "rows": mean.rows / mean.stock_rows,
        "seconds": {stage: round(s, 5) for stage, s in seconds.items()},  # of a picture
        "prompts": len(made),
        "ssim": mean.ssim,
        "ssim_least": min(row.ssim for row in made),
        "lpips": mean.lpips,
        "passes": int(sum(row.as_prompted for row in made)),
        "device": mean.device,
    }


class Study:
    """Draws cases on one device and measures them."""

    def __init__(self, weights: Path, device: str, prompts: int, batch: int, recalibrate: bool):
        self.device = loading.check_device(device)
        self.models = load_models(weights, self.device, recalibrate)
        self.classifier = evaluate.classifier(weights).to(self.device)
        self.prompts = [Prompt(str(k), text, k) for k, text in enumerate(captions.held_prompts(prompts))]
        self.batch, self.work = batch, Work(self.models)

    def rows(self, part: Part, cases: Sequence[Case], results: Results) -> list[dict]:
        """Draw these cases of the part into `results`, where they are not there, and return their rows. Raises
        RuntimeError for one that failed."""
        host = StudyHost(self.models, part, self.batch, self.classifier)
        reference = Case(REFERENCE, together=True)
        if self.device.type == "cuda":
            host.make_together(Case("warm-up", steps=2), self.prompts[: self.batch])
        Runner(host, results, [reference, *cases], self.prompts).run(lambda p: log.info("%s: %s", part.folder, p.doing))
        made: dict[str, list[Row]] = {}
        for row in results.rows():
            made.setdefault(row.case, []).append(row)
        failed = [row.notes for rows in made.values() for row in rows if row.seconds is None]
        if failed:
            raise RuntimeError(f"{part.folder}: {failed[0]}")
        return [described(case, part) | found(made[case.name]) | self.gflop(case, part) for case in cases]

    def gflop(self, case: Case, part: Part) -> dict:
        """The work of one picture by the plan, and its share of the stock picture's of as many steps."""
        loading.use_sampler(self.models.base, part.sampler)
        asked = described(case, part)
        sampling = self._sampling(case, asked["steps"], asked["cfg"])
        decoding = self.work.decoding("tiny" if case.settings.vae.decoder == "tiny" else "full")
        stock = self._sampling(Case(""), asked["steps"], CFG)
        return {"gflop": sampling, "decoding": decoding, "work": sampling / stock}

    def _sampling(self, case: Case, steps: int, cfg: float) -> float:
        plan = make_plans(self.models, Request("", steps=steps, cfg=cfg), case.settings)["base"]
        return self.work.sampling(plan, steps, cfg > 1)


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


def make(options: argparse.Namespace, path: Path, rows: list[dict]) -> None:
    """Draw what is missing in `rows` and write all of them to `path`, part by part."""
    done = {(row["group"], row["name"]) for row in rows}
    study = None
    for part in parts():
        keys = {c: tuple(c.name.split(": ", 1)) for c in part.cases}
        left = [c for c, key in keys.items() if key not in done and (not options.group or key[0] in options.group)]
        if left:
            study = study or Study(options.weights, options.device, options.prompts, options.batch, options.calibrate)
            rows += study.rows(part, left, Results.opened(options.out / part.folder, kind="study", title=part.folder))
            write_atomically(path, json.dumps(rows, indent=1) + "\n")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m demo_model.study", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("study"), help="folder of study.json and the charts")
    parser.add_argument("--weights", type=Path, default=export.WEIGHTS)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    parser.add_argument("--resume", action="store_true", help="keep the rows that are there")
    parser.add_argument("--prompts", type=int, default=64, help="fewer to try it out")
    parser.add_argument("--batch", type=int, default=None, help="pictures at a time; 64 on a GPU, else 8")
    parser.add_argument("--group", nargs="+", choices=GROUPS, help="these alone")
    parser.add_argument("--calibrate", action="store_true", help="measure the model's calibration first, and keep it")
    parser.add_argument("--docs", type=Path, help="a Markdown file whose tables and charts are filled")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    options.batch = options.batch or (64 if loading.check_device(options.device).type == "cuda" else 8)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "study.json"
    there = [p for p in (path, *(options.out / part.folder for part in parts())) if p.exists()]
    if there and not options.resume:
        parser.error(f"--out: {str(there[0])!r} exists; --resume goes on from it")
    rows = json.loads(path.read_text("utf-8")) if path.is_file() else []
    make(options, path, rows)
    study_report.write_charts(rows, options.out)
    if options.docs:
        study_report.fill(options.docs, rows)
    sys.stdout.write(study_report.summary(rows) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
