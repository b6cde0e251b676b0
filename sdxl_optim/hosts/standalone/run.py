"""One sampling pass over a diffusers pipeline, or over two that share one loop (base, then refiner)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from diffusers import DiffusionPipeline

from sdxl_optim.backends.api import Kind
from sdxl_optim.bench.measure import Stopwatch
from sdxl_optim.hosts.standalone.backend import execution_of
from sdxl_optim.hosts.standalone.deepcache import ScheduledDeepCache
from sdxl_optim.hosts.standalone.freeu import FreeUSwitch, freeu_attached
from sdxl_optim.planning.plan import Note, Plan
from sdxl_optim.report import PassReport
from sdxl_optim.sampling.loop import Call, StepPlan

STEP_TENSORS = [
    "prompt_embeds",
    "add_text_embeds",
    "add_time_ids",
]  # what the cutoff replaces between two steps


class DiffusersRun:
    """Follows a plan through the calls of a pipeline's UNet and counts them as they happen.

    diffusers makes one UNet call a model evaluation, with the uncond rows first. `on_call` is called after
    each of them.
    """

    def __init__(self, plan: Plan, name: str, watch: Stopwatch, on_call: Callable[[], object] = lambda: None):
        self.plan = plan
        self.report = PassReport(name, plan)
        self.kind: Kind | None = None  # of the UNet call under way
        self.store = None  # the deepcache package has its own
        self._watch, self._on_call = watch, on_call
        self._begun = 0  # calls
        self._freeu: FreeUSwitch | None = None
        self._deepcache: ScheduledDeepCache | None = None

    def guidance_scale(self, wanted: float) -> float:
        """What to give the pipeline: 1, where it computes no uncond rows, if the cutoff comes before its
        first call.
        """
        return 1.0 if self._next_step().cut else wanted

    @contextmanager
    def attached(self, pipe: DiffusionPipeline) -> Iterator[None]:
        """While entered, the plan runs on `pipe`. Afterwards the pipeline is as before."""
        with ExitStack() as stack:
            if self.plan.freeu:
                switch = freeu_attached(pipe.unet, self.plan.freeu, self._is_skipped if self.plan.deepcache else None)
                self._freeu = stack.enter_context(switch)
            if self.plan.deepcache:
                self._deepcache = ScheduledDeepCache(pipe, self.plan.deepcache)
                self._deepcache.enable()
                stack.callback(self._close_deepcache)
            stack.callback(pipe.unet.register_forward_pre_hook(self._before_unet).remove)
            execution = execution_of(self.plan.backend)
            if execution is not None:
                stack.enter_context(execution.attached(pipe.unet, self))
            yield
            self._count_freeu()
        self.report.finished = self._begun == len(self.plan.loop.calls)

    def _close_deepcache(self) -> None:
        self._deepcache.disable()
        self.report.store_bytes = max(self.report.store_bytes, self._deepcache.peak_bytes)
        self._deepcache = None

    def _is_skipped(self, up_block: int, resnet: int) -> bool:
        return self._deepcache is not None and self._deepcache.skips(up_block, resnet)

    def _count_freeu(self) -> None:
        """Count the call that has just ended, if FreeU changed something in it."""
        if self._freeu:
            self.report.freeu_calls += self._freeu.acted

    def _next_step(self) -> StepPlan:
        return self.plan.step(self._next_call().step)

    def _next_call(self) -> Call:
        calls = self.plan.loop.calls
        return calls[min(self._begun, len(calls) - 1)]

    def _before_unet(self, unet, args) -> None:
        """The UNet's pre-hook: what this call does, and that it happens. args: sample [B, C, H, W],
        timestep.
        """
        if self._begun == 0 or self._next_call().model != self.plan.loop.calls[self._begun - 1].model:
            self._watch.lap("prepare")
        if self._begun == len(self.plan.loop.calls):
            self.report.add_note(Note("schedule", "the sampler made more calls than foreseen"))
        call, step, x = self._next_call(), self._next_step(), args[0]
        self._begun += 1
        cached = False
        if self._deepcache:
            shape = (*x.shape[2:], x.dtype, x.device)
            cached = self._deepcache.begin(call.place, step.cached, len(x), self.plan.rows.cond, shape)
        self._count_freeu()
        if self._freeu:
            self._freeu.turn(step.freeu)
        self.kind = Kind(cached, freeu=self.plan.freeu if step.freeu else None)
        self.report.count_call(self.plan.rows.cond + self.plan.rows.uncond)
        self.report.count_unet(len(x), True, cached)

    def after_step(self, pipe: DiffusionPipeline, index: int, timestep, tensors: dict) -> dict:
        """The pipeline's callback_on_step_end: drops the uncond rows before the first call without them."""
        if self._next_step().cut and pipe.do_classifier_free_guidance:
            tensors = {name: tensors[name].chunk(2)[-1] for name in STEP_TENSORS}
            pipe._guidance_scale = 1.0
        calls = self.plan.loop.calls
        if self._begun >= len(calls) or calls[self._begun].model != calls[self._begun - 1].model:
            self.report.seconds += self._watch.lap("sampling")
        self._on_call()
        return tensors
