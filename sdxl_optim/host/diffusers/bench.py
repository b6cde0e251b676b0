"""Benchmarks over diffusers' pipelines: a case and a prompt → a picture and its row."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version

import torch
from PIL import Image

from sdxl_optim.bench.article import REFINER_STRENGTH, Case
from sdxl_optim.bench.cases import Prompt
from sdxl_optim.bench.measure import PeakMemory
from sdxl_optim.bench.results import Row
from sdxl_optim.host.diffusers.changes import CHANGES
from sdxl_optim.host.diffusers.generate import Models, Request, Result, generate
from sdxl_optim.schedule import Counts


class DiffusersHost:
    """The runner's host. `template` gives steps, CFG scale, size and batch; `name` names the model in the rows."""

    def __init__(self, models: Models, template: Request, name: str):
        self.models, self.template, self.name = models, template, name
        self.device = models.base.device
        models.base.set_progress_bar_config(disable=True)
        if models.refiner is not None:
            models.refiner.set_progress_bar_config(disable=True)

    def why_not(self, case: Case) -> str:
        if case.refines and self.models.refiner is None:
            return "there is no refiner"
        if case.settings.vae.decoder == "tiny" and self.models.tiny_vae is None:
            return "the tiny VAE is not at hand"
        return CHANGES[case.change].why_not(self.models)

    @contextmanager
    def opened(self, case: Case) -> Iterator[None]:
        with CHANGES[case.change].done(self._models(case)):
            yield

    def make(self, case: Case, prompt: Prompt) -> tuple[Image.Image, Row, str]:
        request = self._request(case, prompt)
        with PeakMemory(self.device) as memory:
            result = generate(self._models(case), request, case.settings)
        return result.images[0], self._row(request, result, memory), ""

    def _models(self, case: Case) -> Models:
        return self.models if case.refines else dataclasses.replace(self.models, refiner=None)

    def _request(self, case: Case, prompt: Prompt) -> Request:
        changes = {"prompt": prompt.text, "seed": prompt.seed, "steps": case.steps or self.template.steps}
        if case.switch_at is not None:
            changes["switch_at"] = case.switch_at
        if case.refiner_steps is not None:
            changes |= {"refiner_strength": REFINER_STRENGTH, "refiner_steps": case.refiner_steps}
        return dataclasses.replace(self.template, **changes)

    def _row(self, request: Request, result: Result, memory: PeakMemory) -> Row:
        report, on_cuda = result.report, self.device.type == "cuda"
        counts = sum((p.counts for passes in report.passes.values() for p in passes), Counts())
        sampling = result.seconds.get("sampling")
        return Row(
            host=f"diffusers {version('diffusers')}",
            device=torch.cuda.get_device_name(self.device) if on_cuda else self.device.type.upper(),
            torch=version("torch"),
            checkpoint=self.name,
            sampler=type(self.models.base.scheduler).__name__.removesuffix("Scheduler"),
            width=result.images[0].width,
            height=result.images[0].height,
            steps=request.steps,
            cfg=request.cfg,
            seed=request.seed,
            batch=request.batch,
            seconds=report.seconds,
            sampling_seconds=sampling,
            decode_seconds=result.seconds.get("decode"),
            its=counts.calls / sampling if sampling else None,
            allocated_bytes=memory.bytes if on_cuda else None,
            reserved_bytes=torch.cuda.max_memory_reserved(self.device) if on_cuda else None,
            calls=counts.calls,
            full=counts.full,
            cached=counts.cached,
            rows=counts.rows,
            stock_rows=counts.stock_rows,
            decoder=report.decoder or "",
            notes="; ".join(map(str, report.all_notes())),
        )
