"""Benchmarks over diffusers' pipelines: a case and a prompt → a picture and its row."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

from PIL import Image

from sdxl_optim.bench.article import REFINER_STRENGTH
from sdxl_optim.bench.cases import Case, Prompt
from sdxl_optim.bench.measure import PeakMemory, device_name
from sdxl_optim.bench.results import Row
from sdxl_optim.hosts.standalone import backend, memory
from sdxl_optim.hosts.standalone.changes import CHANGES
from sdxl_optim.hosts.standalone.generate import Models, Request, Result, generate
from sdxl_optim.hosts.standalone.many import generate_many
from sdxl_optim.hosts.standalone.request_facts import request_facts
from sdxl_optim.planning.plan import plan_request
from sdxl_optim.report import JobReport, PassReport
from sdxl_optim.sampling.loop import Counts
from sdxl_optim.settings import Memory, Settings


class DiffusersHost:
    """The runner's host. `template` gives steps, CFG scale, size and batch; `name` names the model in the rows.

    check: whether a picture shows what its prompt says; without it nobody looks.
    """

    def __init__(
        self,
        models: Models,
        template: Request,
        name: str,
        check: Callable[[Image.Image, str], bool] | None = None,
    ):
        self.models, self.template, self.name, self.check = models, template, name, check
        self.device = models.base.device
        self._placed = Memory()
        models.base.set_progress_bar_config(disable=True)
        if models.refiner is not None:
            models.refiner.set_progress_bar_config(disable=True)

    def why_not(self, case: Case) -> str:
        if case.refines and self.models.refiner is None:
            return "there is no refiner"
        if case.settings.vae.decoder == "tiny" and self.models.tiny_vae is None:
            return "the tiny VAE is not at hand"
        no_backend = backend.why_not(case.settings)
        if no_backend:
            return f"{case.settings.backend.name}: {no_backend}"
        no_memory = self._why_no_memory(case)
        if no_memory and not case.together:  # which goes by stages on every device
            return no_memory
        return CHANGES[case.change].why_not(self.models)

    def _why_no_memory(self, case: Case) -> str | None:
        """Why some of the case's settings of memory can't be had here, or None."""
        plan = plan_request(Settings(memory=case.settings.memory), request_facts(self.models))
        return next((str(note.text) for note in plan.notes if note.refused), None)

    @contextmanager
    def opened(self, case: Case) -> Iterator[None]:
        """Weights are brought where the case wants them once, not once a picture."""
        wanted = Memory() if self._why_no_memory(case) else case.settings.memory
        models = self._models(case)
        plan = plan_request(Settings(memory=wanted), request_facts(models))
        self._place_refiner(case.refines)
        backend.executions.release_others(
            case.settings.backend.name
        )  # what they have done to the weights is undone first
        with CHANGES[case.change].done(models), memory.memory_as_planned(models, plan, JobReport()):
            self._placed = wanted
            try:
                yield
            finally:
                self._placed = Memory()

    def make(self, case: Case, prompt: Prompt) -> tuple[Image.Image, Row, str]:
        request = self._request(case, prompt)
        with PeakMemory(self.device) as peak:
            result = generate(self._models(case), request, case.settings)
        row = self._row(request, result, result.report.all_passes, peak)
        return result.images[0], self._checked(row, result.images[0], prompt), ""

    def make_together(self, case: Case, prompts: Sequence[Prompt]) -> list[tuple[Image.Image, Row, str]]:
        requests = [self._request(case, prompt) for prompt in prompts]
        with PeakMemory(self.device) as peak:
            result = generate_many(self._models(case), requests, case.settings)
        made = []
        for k, request in enumerate(requests):
            row = self._row(request, result, result.report.passes[k], peak, share=len(requests))
            image = result.images[k * request.batch]
            made.append((image, self._checked(row, image, prompts[k]), ""))
        return made

    def _checked(self, row: Row, image: Image.Image, prompt: Prompt) -> Row:
        if self.check is None:
            return row
        return dataclasses.replace(row, as_prompted=float(self.check(image, prompt.text)))

    def _models(self, case: Case) -> Models:
        refiner = self.models.refiner if case.refines else None
        return dataclasses.replace(self.models, refiner=refiner, placed=self._placed)

    def _place_refiner(self, needed: bool) -> None:
        """A refiner that the case has no part for waits in main memory, where it does not count in the peak."""
        refiner = self.models.refiner
        if refiner is None or self.device.type == "cpu":
            return
        refiner.to(self.device if needed else "cpu")
        self.models.base.to(self.device)  # with the parts that both share

    def _request(self, case: Case, prompt: Prompt) -> Request:
        changes: dict[str, Any] = {
            "prompt": prompt.text,
            "seed": prompt.seed,
            "steps": case.steps or self.template.steps,
        }
        if case.cfg is not None:
            changes["cfg"] = case.cfg
        if case.switch_at is not None:
            changes["switch_at"] = case.switch_at
        if case.refiner_steps is not None:
            changes |= {"refiner_strength": REFINER_STRENGTH, "refiner_steps": case.refiner_steps}
        return dataclasses.replace(self.template, **changes)

    def _row(
        self, request: Request, result: Result, passes: Sequence[PassReport], peak: PeakMemory, share: int = 1
    ) -> Row:
        """share: of how many requests the result's seconds are."""
        seconds = {stage: s / share for stage, s in result.seconds.items()}
        row = Row.of(
            result.report,
            sum((p.counts for p in passes), Counts()),
            result.report.seconds / share,
            seconds.get("sampling"),
            seconds.get("decode"),
            host=f"diffusers {version('diffusers')}",
            device=device_name(self.device),
            checkpoint=self.name,
            sampler=type(self.models.base.scheduler).__name__.removesuffix("Scheduler"),
            width=result.images[0].width,
            height=result.images[0].height,
            steps=request.steps,
            cfg=request.cfg,
            seed=request.seed,
            batch=request.batch,
            allocated_bytes=peak.bytes if peak.on_cuda else None,
            reserved_bytes=peak.reserved_bytes,
            process_bytes=None if peak.on_cuda else peak.bytes,
        )
        if share > 1:
            notes = filter(None, [f"a picture's share of {share} made together", row.notes])
            row = dataclasses.replace(row, notes="; ".join(notes))
        return row
