"""Cases × prompts × runs, measured one by one and kept as they are made; what a result has already is not made
again."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from PIL import Image

from sdxl_optim.bench.cases import Case, Prompt
from sdxl_optim.bench.quality import compared
from sdxl_optim.bench.report import write_report
from sdxl_optim.bench.results import Results, Row


class Stopped(Exception):
    """Asked to stop in the middle of a picture."""


class Host(Protocol):
    """What makes the pictures."""

    def why_not(self, case: Case) -> str:
        """Why this case can't run here, or nothing."""

    def opened(self, case: Case) -> AbstractContextManager:
        """While entered, `make` makes this case's pictures."""

    def make(self, case: Case, prompt: Prompt) -> tuple[Image.Image, Row, str]:
        """A picture, what was measured, and its infotext. Raises Stopped."""

    def make_together(self, case: Case, prompts: Sequence[Prompt]) -> list[tuple[Image.Image, Row, str]]:
        """The same of all prompts, for cases that are `together`. A row's seconds are its picture's share."""
        return [self.make(case, prompt) for prompt in prompts]


@dataclass(frozen=True)
class Progress:
    """done, total: pictures. seconds_left is None before the first one."""

    done: int
    total: int
    doing: str
    seconds_left: float | None


class Runner:
    """Runs a benchmark into a result's folder. `run` returns early once `stop` was asked for.

    order: the cases' names as the rows are to stand, where `cases` are a part of them.
    by_prompt: all cases of a prompt, then of the next, so that a machine that is busy for a while slows all cases
    alike; otherwise case by case, which brings the weights to their places once a case.
    """

    def __init__(
        self,
        host: Host,
        results: Results,
        cases: Sequence[Case],
        prompts: Sequence[Prompt],
        runs: int = 1,
        warm_up: int = 0,
        order: Sequence[str] = (),
        by_prompt: bool = False,
    ):
        self.host, self.results, self.cases, self.prompts = host, results, cases, prompts
        self.runs, self.warm_up, self.by_prompt = runs, warm_up, by_prompt
        self.order = list(order) or [case.name for case in cases]
        self._stop = False
        self._seconds: list[float] = []
        self._first: dict[str, float | None] = {}  # a case's name → seconds of its first run

    def stop(self) -> None:
        self._stop = True

    def run(self, on_progress: Callable[[Progress], None] = lambda progress: None) -> None:
        """Measure what is missing, then write the report. Raises ValueError where two cases or prompts share a name."""
        for names in ([c.name for c in self.cases], [p.name for p in self.prompts]):
            if len(set(names)) < len(names):
                raise ValueError(f"a name is used twice: {', '.join(names)}")
        asked = {case.name for case in self.cases}
        self.results.replace([r for r in self.results.rows() if r.seconds is not None or r.case not in asked])
        self._references = {row.group: row for row in reversed(self.results.rows()) if row.stock}
        missing = self._missing()
        self._total = sum(
            len(tasks) + self.warm_up * len(self._to_warm_up(case))
            for case, tasks in missing.items()
            if not self.host.why_not(case)
        )
        self._done, self._report_progress = 0, on_progress
        self._given_up: set[str] = set()  # names of cases that can't run
        try:
            for case, tasks in self._in_order(missing):
                if case.name not in self._given_up:
                    self._run_or_note(case, tasks)
        except Stopped:
            pass
        finally:
            order = {name: k for k, name in enumerate(self.order)}
            self.results.replace(sorted(self.results.rows(), key=lambda row: order.get(row.case, len(order))))
            write_report(self.results)

    def left(self) -> int:
        """Pictures that this host can make and that are not there."""
        return sum(len(tasks) for case, tasks in self._missing().items() if not self.host.why_not(case))

    def _missing(self) -> dict[Case, list[tuple[Prompt, int]]]:
        """What is still to be made of each case that lacks something."""
        have = {(row.case, row.prompt, row.run) for row in self.results.rows()}
        tasks = {
            case: [
                (prompt, run)
                for prompt in self.prompts
                for run in range(1, self.runs + 1)
                if (case.name, prompt.name, run) not in have
            ]
            for case in self.cases
        }
        return {case: todo for case, todo in tasks.items() if todo}

    def _in_order(self, missing: dict[Case, list[tuple[Prompt, int]]]) -> list[tuple[Case, list[tuple[Prompt, int]]]]:
        if not self.by_prompt:
            return list(missing.items())
        by_prompt = [
            (case, [task for task in tasks if task[0] == prompt])
            for prompt in self.prompts
            for case, tasks in missing.items()
        ]
        return [(case, tasks) for case, tasks in by_prompt if tasks]

    def _run_or_note(self, case: Case, tasks: list[tuple[Prompt, int]]) -> None:
        """A case that fails (memory that does not suffice, most often) is noted, and the next ones are run."""
        try:
            self._run_case(case, tasks)
        except RuntimeError as error:
            self._give_up(case, f"failed: {(str(error).splitlines() or [repr(error)])[0]}")

    def _give_up(self, case: Case, why: str) -> None:
        self._given_up.add(case.name)
        self.results.append(Row(case.name, notes=why))

    def _run_case(self, case: Case, tasks: list[tuple[Prompt, int]]) -> None:
        reason = self.host.why_not(case)
        if reason:
            self._give_up(case, f"not run: {reason}")
            return
        with self.host.opened(case):
            for _ in range(self.warm_up if case.name not in self._first else 0):
                made = self._make(case, self._to_warm_up(case), "warm-up")
                self._first.setdefault(case.name, made[0][1].seconds)
            for prompts, run in _at_once(case, tasks):
                what = prompts[0].name if len(prompts) == 1 else f"{len(prompts)} prompts"
                made = self._make(case, prompts, f"{what}, run {run}")
                first = self._first.setdefault(case.name, made[0][1].seconds)
                for prompt, (picture, row, infotext) in zip(prompts, made, strict=True):
                    own: dict[str, Any] = {"case": case.name, "group": prompt.name, "prompt": prompt.name, "run": run}
                    row = dataclasses.replace(row, **own, stock=case.stock, first_seconds=first)
                    self._keep(row, picture, infotext)

    def _to_warm_up(self, case: Case) -> Sequence[Prompt]:
        return self.prompts if case.together else self.prompts[:1]

    def _keep(self, row: Row, picture: Image.Image, infotext: str) -> None:
        reference = self._references.get(row.group)
        stock = self.results.picture(reference.picture) if reference else None
        if reference is not None and stock is not None:
            row = compared(row, reference.picture, stock, picture)
        row = self.results.append(row, picture, infotext)
        if row.stock:
            self._references.setdefault(row.group, row)

    def _make(self, case: Case, prompts: Sequence[Prompt], what: str) -> list[tuple[Image.Image, Row, str]]:
        if self._stop:
            raise Stopped
        left = None
        if self._seconds:
            left = sum(self._seconds) / len(self._seconds) * (self._total - self._done)
        self._report_progress(Progress(self._done, self._total, f"{case.name}: {what}", left))
        began = time.perf_counter()
        made = self.host.make_together(case, prompts) if case.together else [self.host.make(case, prompts[0])]
        self._seconds += [(time.perf_counter() - began) / len(made)] * len(made)
        self._done += len(made)
        self._report_progress(Progress(self._done, self._total, f"{case.name}: {what}", left))
        return made


def _at_once(case: Case, tasks: Sequence[tuple[Prompt, int]]) -> list[tuple[list[Prompt], int]]:
    """What is made in one go: a picture, or a run's pictures."""
    if not case.together:
        return [([prompt], run) for prompt, run in tasks]
    runs = dict.fromkeys(run for _, run in tasks)
    return [([prompt for prompt, of in tasks if of == run], run) for run in runs]
