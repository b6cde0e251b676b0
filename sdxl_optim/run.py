"""One sampling pass: opens the techniques that were planned, makes the value of each UNet call, counts what happens,
leaves nothing behind."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Hashable
from contextlib import ExitStack

from torch import nn

from sdxl_optim.backends.execution import Execution
from sdxl_optim.errors import Unsupported
from sdxl_optim.planning.cursor import CallCursor
from sdxl_optim.planning.plan import Plan
from sdxl_optim.report import PassReport
from sdxl_optim.sampling.call import UNetCall
from sdxl_optim.sampling.loop import StepPlan
from sdxl_optim.sampling.note import Note
from sdxl_optim.techniques.base import Attachment, PassTechnique
from sdxl_optim.unet.layout import Layout, read_layout
from sdxl_optim.wording import Text


class Site:
    """Where a technique is attached: one UNet in one run."""

    def __init__(self, run: Run, unet: nn.Module, layout_of: Callable[[nn.Module], Layout]):
        self.unet = unet
        self._run, self._layout_of = run, layout_of
        self._layout: Layout | None = None

    def current(self) -> UNetCall | None:
        """The UNet call under way."""
        return self._run.call

    def layout(self) -> Layout:
        """The UNet's blocks. Raises Unsupported where they can't be told."""
        if self._layout is None:
            self._layout = self._layout_of(self.unet)
        return self._layout

    def note(self, note: Note) -> None:
        self._run.report.add_note(note)

    def kept(self, nbytes: int) -> None:
        """Bytes that a technique kept of this UNet's features, at most."""
        self._run.report.store_bytes = max(self._run.report.store_bytes, nbytes)


class Run:
    """A context manager around a sampler's loop.

    The host calls `attach` with the UNet before the first call and whenever another model takes over, `begin_call`
    before each model evaluation, and `suspend`/`resume` around anything else that samples meanwhile. UNet calls
    that others add to ours are computed in full. execution: runs the calls by a backend; None is the stock call.

    rows_held: for hosts with another order than cond rows before uncond rows: from a UNet call's rows and keyword
    arguments to a name for what it holds, and the row at which its cond rows begin. layout_of: reads the UNet's layout.
    """

    def __init__(
        self,
        plan: Plan,
        name: str = "base",
        execution: Execution | None = None,
        rows_held: Callable[[int, dict], tuple[Hashable, int]] = lambda rows, kwargs: (None, 0),
        layout_of: Callable[[nn.Module], Layout] = read_layout,
    ):
        self.plan = plan
        self.execution = execution
        self._rows_held, self._layout_of = rows_held, layout_of
        self.report = PassReport(name=name, plan=plan)
        self.call: UNetCall | None = None  # the UNet call under way, or the last one
        self.attached_to: Hashable = None
        self._cursor = CallCursor(plan, self.report.add_note)
        self._evaluation: _Evaluation | None = None  # the model evaluation under way; None while others sample
        self._suspended: list[_Evaluation | None] = []
        self._model = -1
        self._attachments: list[Attachment] = []
        self.undo = ExitStack()

    def __enter__(self) -> Run:
        self._started = time.perf_counter()
        return self

    def __exit__(self, *error) -> None:
        self._evaluation = None
        try:
            self._detach()
        finally:
            self.report.seconds = time.perf_counter() - self._started
            self.report.finished = error == (None, None, None)

    # --- the model

    def attach(self, unet: nn.Module, key: Hashable = None) -> None:
        """Attach the planned techniques to `unet`, after detaching them from a model used before. `key` tells which
        model it holds."""
        self._detach()
        self.attached_to = key
        self._model += 1
        with ExitStack() as opening:
            opening.callback(unet.register_forward_pre_hook(self._before_unet, with_kwargs=True).remove)
            site = Site(self, unet, self._layout_of)
            for technique, decision in self.plan.running:
                self._open(opening, technique, site, decision.config)
            if self.execution is not None:
                opening.enter_context(self.execution.attached(unet, self))
            self.undo = opening.pop_all()

    def _open(self, opening: ExitStack, technique: PassTechnique, site: Site, config) -> None:
        try:
            attached = technique.attached(site, config)
            if attached is not None:
                self._attachments.append(opening.enter_context(attached))
        except Unsupported as error:
            self.note(technique.feature, error.reason)

    def _detach(self) -> None:
        undo, self.undo = self.undo, ExitStack()
        try:
            undo.close()
        finally:
            self._attachments = []
            self.call = None

    # --- the calls

    def begin_call(self, rows: int, stock_rows: int, cond_rows: int) -> StepPlan:
        """A model evaluation begins that will put `rows` rows through the UNet, where a stock run puts `stock_rows`."""
        self._evaluation = _Evaluation(*self._cursor.advance(), rows, cond_rows)
        self.report.count_call(stock_rows)
        return self._evaluation.step

    def next_step(self) -> StepPlan:
        """What the next call will do, before it is begun."""
        return self._cursor.peek()[1]

    def foreign_call_begins(self) -> None:
        """Somebody else's model evaluation begins, which is none of the planned ones."""
        self._evaluation = None

    def suspend(self) -> None:
        """Somebody else samples: nothing of ours acts until `resume`."""
        self._suspended.append(self._evaluation)
        self._evaluation = None

    def resume(self) -> None:
        self._evaluation = self._suspended.pop()

    def note(self, feature: Text, text: Text, refused: bool = True) -> None:
        self.report.add_note(Note(feature, text, refused))

    # --- the UNet's hook

    def _before_unet(self, unet, args, kwargs) -> None:
        call = self._unet_call(args[0] if args else kwargs["x"], kwargs)
        for attachment in self._attachments:
            call = attachment.begin(call)
        self.call = call
        self.report.count_unet(call.rows, call.ours, call.cached)
        if self._evaluation is not None:
            self._evaluation.count_acting(call, self.report)

    def _unet_call(self, x, kwargs: dict) -> UNetCall:
        """x: the UNet's input [B, C, H, W]."""
        rows, shape, evaluation = x.shape[0], (*x.shape[2:], x.dtype, x.device), self._evaluation
        if evaluation is None:
            return UNetCall(None, False, rows, 0, model=self._model, shape=shape)
        if rows > evaluation.rows_left:
            return UNetCall(evaluation.step, False, rows, evaluation.cond_rows, model=self._model, shape=shape)
        held, cond_at = self._rows_held(rows, kwargs)
        place = evaluation.place_of(held, rows)
        return UNetCall(evaluation.step, True, rows, evaluation.cond_rows, place, cond_at, self._model, shape)


class _Evaluation:
    """A model evaluation under way: the rows that are still to come, and the parts in which they came so far."""

    def __init__(self, call, step: StepPlan, rows: int, cond_rows: int):
        self.step, self.rows_left, self.cond_rows = step, rows, cond_rows
        self._call = call
        self._parts: Counter[Hashable] = Counter()  # by what they hold
        self._acted: set[str] = set()

    def place_of(self, held: Hashable, rows: int) -> Hashable:
        """The place of the next part. What was not foreseen has none, as nothing would ever reuse it."""
        part = self._parts[held]
        self._parts[held] += 1
        self.rows_left -= rows
        return None if self._call is None else (self._call.place, held, part)

    def count_acting(self, call: UNetCall, report: PassReport) -> None:
        """Each technique once, in however many parts it acts."""
        for technique in call.acting - self._acted:
            report.acted[technique] += 1
        self._acted |= call.acting
