"""One sampling pass: opens the patches, publishes what the current call does, counts what happens, leaves nothing
behind."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Hashable
from contextlib import ExitStack

from torch import nn

from sdxl_optim.backends.api import Kind
from sdxl_optim.backends.execution import Execution
from sdxl_optim.errors import Unsupported
from sdxl_optim.planning.plan import Note, Plan
from sdxl_optim.report import PassReport
from sdxl_optim.sampling.loop import Call, StepPlan
from sdxl_optim.techniques.deepcache.patch import DeepCacheStore, deepcache_attached
from sdxl_optim.techniques.freeu.patch import freeu_attached, freeu_blocks
from sdxl_optim.unet.layout import Layout, read_layout


class Run:
    """A context manager around a sampler's loop.

    The host calls `attach` with the UNet before the first call and whenever another model takes over, `begin_call`
    before each model evaluation, and `suspend`/`resume` around anything else that samples meanwhile. UNet calls
    that others add to ours pass uncached. execution: runs the calls by a backend; None is the stock call.

    order_of: for hosts with another order than cond rows before uncond rows: from a UNet call's rows and keyword
    arguments to a name for what it holds, and the row at which its cond rows begin. layout_of: reads the UNet's layout.
    """

    def __init__(
        self,
        plan: Plan,
        name: str = "base",
        execution: Execution | None = None,
        order_of: Callable[[int, dict], tuple[Hashable, int]] = lambda rows, kwargs: (None, 0),
        layout_of: Callable[[nn.Module], Layout] = read_layout,
    ):
        self.plan = plan
        self.execution = execution
        self._order_of = order_of
        self._layout_of = layout_of
        self.report = PassReport(name=name, plan=plan)
        self.step: StepPlan | None = None  # valid while one of our calls is under way
        self._call: Call | None = None
        self._calls_begun = 0
        self._parts: Counter[Hashable] = Counter()  # of the model evaluation under way, by what they hold
        self._rows_left = 0
        self._cond_rows = 0
        self._freeu_counted = False
        self._model = -1
        self.kind: Kind | None = None  # of our UNet call under way
        self.attached_to: Hashable = None
        self._layout: Layout | None = None  # where a patch is open
        self.store: DeepCacheStore | None = None
        self._patches = ExitStack()
        self._suspended: list[StepPlan | None] = []

    def __enter__(self) -> Run:
        self._started = time.perf_counter()
        return self

    def __exit__(self, *error) -> None:
        self.step = None
        try:
            self._detach()
        finally:
            self.report.seconds = time.perf_counter() - self._started
            self.report.finished = error == (None, None, None)

    # --- the model

    def attach(self, unet: nn.Module, key: Hashable = None) -> None:
        """Open the plan's patches on `unet`, closing those on a model used before. `key` tells which model it holds."""
        self._detach()
        self.attached_to = key
        self._model += 1
        with ExitStack() as opening:
            opening.callback(unet.register_forward_pre_hook(self._before_unet, with_kwargs=True).remove)
            if self.plan.freeu or self.plan.deepcache:
                self._open(opening, unet)
            if self.execution is not None:
                opening.enter_context(self.execution.attached(unet, self))
            self._patches = opening.pop_all()

    def _open(self, stack: ExitStack, unet: nn.Module) -> None:
        try:
            layout = self._layout_of(unet)
        except Unsupported as error:
            self.note("FreeU and DeepCache", error.reason)
            return
        self._layout = layout
        if self.plan.deepcache and self.plan.deepcache.cache_branch_id < layout.depth:
            self.store = DeepCacheStore(layout, self.plan.deepcache.cache_branch_id)
            stack.enter_context(deepcache_attached(layout, self.store))
        elif self.plan.deepcache:
            self.note(
                "DeepCache",
                f"branch {self.plan.deepcache.cache_branch_id} is deeper than the next model's UNet",
            )
        if self.plan.freeu:
            stack.enter_context(freeu_attached(layout, self.plan.freeu, self._freeu_on))

    def _detach(self) -> None:
        patches, self._patches = self._patches, ExitStack()
        try:
            patches.close()
        finally:
            if self.store is not None:
                self.report.store_bytes = max(self.report.store_bytes, self.store.peak_bytes)
                if self.store.disabled:
                    self.note("DeepCache", self.store.disabled)
                self.store = None
            self._layout = self.kind = None

    # --- the calls

    def begin_call(self, rows: int, stock_rows: int, cond_rows: int) -> StepPlan:
        """A model evaluation begins that will put `rows` rows through the UNet, where a stock run puts `stock_rows`."""
        calls = self.plan.loop.calls
        if self._calls_begun < len(calls):
            self._call = calls[self._calls_begun]
            self.step = self.plan.step(self._call.step)
        else:
            self._call = Call(-1, self._calls_begun)
            self.step = self.plan.always
            if self.plan.loop.foreseeable:
                self.note("schedule", "the sampler made more calls than foreseen; these ran uncached")
        self._calls_begun += 1
        self._parts, self._rows_left, self._cond_rows = Counter(), rows, cond_rows
        self.report.count_call(stock_rows)
        self._freeu_counted = False
        return self.step

    def next_step(self) -> StepPlan:
        """What the next call will do, before it is begun."""
        calls = self.plan.loop.calls
        if self._calls_begun < len(calls):
            return self.plan.step(calls[self._calls_begun].step)
        return self.plan.always

    def suspend(self) -> None:
        """Somebody else samples: our hooks keep still until `resume`."""
        self._suspended.append(self.step)
        self.step = None

    def resume(self) -> None:
        self.step = self._suspended.pop()

    def note(self, feature: str, text: str, refused: bool = True) -> None:
        self.report.add_note(Note(feature, text, refused))

    # --- the hooks

    def _before_unet(self, unet, args, kwargs) -> None:
        x = args[0] if args else kwargs["x"]
        rows = x.shape[0]
        ours = self.step is not None and rows <= self._rows_left
        key, cond_at = None, 0
        if ours:
            held, cond_at = self._order_of(rows, kwargs)
            if self._call.step >= 0:  # what was not foreseen is not stored: nothing would ever reuse it
                key = (self._call.place, held, self._parts[held])
            self._parts[held] += 1
            self._rows_left -= rows
        shape = (*x.shape[2:], x.dtype, x.device)
        cached = False
        if self.store is not None:
            want = key is not None and self.step.cached
            cached = self.store.begin(key, want, rows, self._cond_rows, self._model, shape, cond_at)
        self.report.count_unet(rows, ours, cached)
        freeu = self._layout is not None and any(map(self._freeu_on, freeu_blocks(self._layout)))
        if freeu and not self._freeu_counted:
            self._freeu_counted = True
            self.report.freeu_calls += 1
        branch = self.store.branch if self.store is not None else None
        self.kind = Kind(cached, branch, self.plan.freeu if freeu else None) if ours else None

    def _freeu_on(self, output_block: int) -> bool:
        # Also in calls that others add to ours (PAG): they compare their prediction with ours, and the difference must
        # not be FreeU's.
        if self.step is None or not self.step.freeu:
            return False
        return self.store is None or not self.store.skips_output_block(output_block, self._layout.depth)
