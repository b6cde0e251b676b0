"""One sampling pass over a diffusers pipeline, or over two that share one loop (base, then refiner)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from diffusers import DiffusionPipeline

from sdxl_optim.bench.measure import Stopwatch
from sdxl_optim.hosts.standalone.backend import execution_of
from sdxl_optim.hosts.standalone.deepcache import deepcache_attached
from sdxl_optim.hosts.standalone.finite import SCHEDULE, FiniteWatch
from sdxl_optim.hosts.standalone.freeu import freeu_attached
from sdxl_optim.hosts.standalone.refusals import refusals_of
from sdxl_optim.hosts.standalone.site import PipelineSite
from sdxl_optim.planning.cursor import CallCursor
from sdxl_optim.planning.plan import Plan
from sdxl_optim.report import PassReport
from sdxl_optim.sampling.call import UNetCall

HALVED = ("prompt_embeds", "add_text_embeds", "add_time_ids")  # what the cutoff replaces between two steps
STEP_TENSORS = ["latents", *HALVED]  # what `after_step` is given

# By technique: how it is attached to diffusers' UNet. (site, config) → context manager.
ATTACH: dict[str, Callable] = {"deepcache": deepcache_attached, "freeu": freeu_attached}


class DiffusersRun:
    """Follows a plan through the calls of a pipeline's UNet and counts them as they happen.

    diffusers makes one UNet call a model evaluation, with the uncond rows first. `on_call` is called after each
    of them.
    """

    def __init__(self, plan: Plan, name: str, watch: Stopwatch, on_call: Callable[[], object] = lambda: None):
        self.plan = plan
        self.report = PassReport(name, plan)
        self.call: UNetCall | None = None  # the UNet call under way, or the last one
        self._cursor = CallCursor(plan, self.report.add_note)
        self._steps_done = 0
        self._finite = FiniteWatch()
        self._watch, self._on_call = watch, on_call
        self._attachments: list = []

    def guidance_scale(self, wanted: float) -> float:
        """What to give the pipeline: 1, where it computes no uncond rows, if the cutoff comes before its first call."""
        return 1.0 if self._cursor.peek()[1].drops_uncond else wanted

    @contextmanager
    def attached(self, pipe: DiffusionPipeline) -> Iterator[None]:
        """Context manager: the plan runs on `pipe`. Afterwards the pipeline is as before.

        Raises Refused for what the pipeline or its scheduler raises before its first step is done."""
        done_before = self._steps_done
        with refusals_of(type(pipe).__name__, lambda: self._steps_done > done_before), ExitStack() as stack:
            stack.callback(self._attachments.clear)
            for technique, decision in self.plan.running:
                if technique.key in ATTACH:
                    attached = ATTACH[technique.key](PipelineSite(pipe, self), decision.config)
                    self._attachments.append(stack.enter_context(attached))
            stack.callback(pipe.unet.register_forward_pre_hook(self._before_unet, with_kwargs=True).remove)
            stack.callback(pipe.unet.register_forward_hook(self._after_unet).remove)
            execution = execution_of(self.plan.config("backend"))
            if execution is not None:
                stack.enter_context(execution.attached(pipe.unet, self))
            yield
        self.report.finished = self._cursor.begun == len(self.plan.loop.calls)

    def _before_unet(self, unet, args, kwargs) -> None:
        """The UNet's pre-hook: what this call does, and that it happens. args: sample [B, C, H, W], timestep."""
        if self._cursor.model_changes:
            self._watch.lap("prepare")
            self._finite.see("the text encoder", kwargs["encoder_hidden_states"])
        planned, step = self._cursor.advance()
        x, rows = args[0], self.plan.rows
        place = None if planned is None else planned.place
        shape = (*x.shape[2:], x.dtype, x.device)
        call = UNetCall(step, True, len(x), rows.cond, place, len(x) - rows.cond, shape=shape)
        for attachment in self._attachments:
            call = attachment.begin(call)
        self.call = call
        self.report.acted.update(call.acting)
        self.report.count_call(rows.cond + rows.uncond)
        self.report.count_unet(len(x), True, call.cached)

    def _after_unet(self, unet, args, output) -> None:
        """The UNet's hook. output: a tuple of the prediction [B, C, H, W]."""
        self._finite.see(f"the UNet (call {self._cursor.begun})", output[0])

    def after_step(self, pipe: DiffusionPipeline, index: int, timestep, tensors: dict) -> dict:
        """The pipeline's callback_on_step_end: drops the uncond rows before the first call without them. Raises Failed
        at the pipeline's last step where its latents are no numbers."""
        self._steps_done += 1
        self._finite.see(f"the sampler (call {self._cursor.begun})", tensors["latents"], SCHEDULE)
        if self._cursor.at_end or self._cursor.model_changes:
            self._finite.check()
        if self._cursor.peek()[1].drops_uncond and pipe.do_classifier_free_guidance:
            tensors |= {name: tensors[name].chunk(2)[-1] for name in HALVED}
            pipe._guidance_scale = 1.0
        if self._cursor.at_end or self._cursor.model_changes:
            self.report.seconds += self._watch.lap("sampling")
        self._on_call()
        return tensors
