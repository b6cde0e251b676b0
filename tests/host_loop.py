"""A sampler's loop as the WebUI runs it, and what really went through a UNet."""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field

import ldm_unet
import torch

from sdxl_optim.planning.plan import Plan, make_plan
from sdxl_optim.run import Run
from sdxl_optim.sampling.call import UNetCall
from sdxl_optim.sampling.facts import Facts, UNetFacts
from sdxl_optim.sampling.loop import Loop, Rows, StepPlan
from sdxl_optim.settings import from_dict
from sdxl_optim.techniques.deepcache.patch import deepcache_attached
from sdxl_optim.techniques.freeu.patch import freeu_stages
from sdxl_optim.unet.layout import read_layout

PAIR = Rows(cond=1, uncond=1)


def facts_for(
    loop: Loop,
    rows: Rows = PAIR,
    cfg_scale: float = 7.0,
    depth: int = 9,
    freeu_stages: int = 2,
    no_unet: str | None = None,
    cached_share: float | None = None,
    no_cut: str | None = None,
    no_cache: str | None = None,
    no_backend: str | None = None,
    **facts,
) -> Facts:
    """What a host tells of a pass. no_…: the reasons why a technique can't run."""
    unet = UNetFacts(depth, freeu_stages, no_unet, lambda branch: cached_share)
    cannot = {"cfg_cutoff": no_cut, "deepcache": no_cache, "backend": no_backend}
    return Facts(loop, rows, cfg_scale, unet, {key: reason for key, reason in cannot.items() if reason}, **facts)


def plan_for(settings: dict, loop: Loop, rows: Rows = PAIR, unet=None, cfg_scale: float = 7.0, **facts) -> Plan:
    if unet is not None:
        layout = read_layout(unet)
        facts = {"depth": layout.depth, "freeu_stages": freeu_stages(layout), **facts}
    return make_plan(from_dict(settings), facts_for(loop, rows, cfg_scale, **facts))


def step_plan(cached: bool = False, cut: bool = False, freeu: bool = False) -> StepPlan:
    """What a step does, by the effects of the techniques."""
    acting = {"deepcache": cached, "cfg_cutoff": cut, "freeu": freeu}
    return StepPlan(frozenset(key for key, acts in acting.items() if acts), cut)


class DeepCacheCalls:
    """DeepCache attached to a UNet, and the calls announced to it as a run does. freeu: whether their steps have it."""

    def __init__(self, layout, branch: int = 0, freeu: bool = False):
        self.call, self.refused, self.nbytes = None, None, None
        self._freeu = freeu
        self.patch = deepcache_attached(layout, branch, self.current, self)

    def current(self):
        return self.call

    def __enter__(self):
        self.at_work = self.patch.__enter__()
        return self

    def __exit__(self, *error):
        self.patch.__exit__(*error)

    def kept(self, nbytes: int) -> None:
        self.nbytes = nbytes

    def note(self, note) -> None:
        self.refused = note.text

    def begin(self, cached: bool, rows: int = 2, cond_rows: int = 1, shape: tuple = ()) -> bool:
        """A UNet call begins that the plan has cached or not; whether it is cached."""
        step = step_plan(cached=cached, freeu=self._freeu)
        self.call = self.at_work.begin(UNetCall(step, True, rows, cond_rows, place=(0, 0), shape=shape))
        return self.call.cached


def host_parts(rows: Rows, cut: bool, host_skips: bool) -> list[range]:
    """Which rows go through the UNet together, as `CFGDenoiser.forward` of the WebUI decides it."""
    # the cutoff hands the host an uncond of no rows and of the cond's length
    same_length = rows.same_length or cut
    skip_uncond = host_skips
    n_uncond = 0 if cut else rows.uncond
    if same_length or skip_uncond:
        total = rows.cond if skip_uncond else rows.cond + n_uncond
        if rows.batched:
            return [range(total)]
        return [range(a, min(a + rows.batch, total)) for a in range(0, total, rows.batch)]
    size = rows.batch * 2 if rows.batched else rows.batch
    parts = [range(a, min(a + size, rows.cond)) for a in range(0, rows.cond, size)]
    return [*parts, range(rows.cond, rows.cond + n_uncond)]


@dataclass
class Seen:
    """Counts taken by the test's own hooks. `outputs` has each UNet call's result."""

    full: int = 0
    cached: int = 0
    rows: int = 0
    touched: Counter = field(default_factory=Counter)  # how often each block's first layer ran
    outputs: list[torch.Tensor] = field(default_factory=list)


@contextmanager
def watched(unet):
    """Count full and cached calls and rows by hooks on the UNet and on the layers inside its middle block."""
    seen, state = Seen(), {"middle": 0}
    handles = []

    def before(module, args):
        state["middle"] = 0

    def in_middle(module, args, out):
        state["middle"] += 1

    def after(module, args, out):
        seen.full += state["middle"] > 0
        seen.cached += state["middle"] == 0
        seen.rows += args[0].shape[0]
        seen.outputs.append(out.clone())

    handles.append(unet.register_forward_pre_hook(before))
    handles.append(unet.middle_block[0].register_forward_hook(in_middle))
    handles.append(unet.register_forward_hook(after))
    for index, block in enumerate(read_layout(unet).blocks):

        def ran(module, args, out, index=index):
            seen.touched[index] += 1

        handles.append(block[0].register_forward_hook(ran))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def call_inputs(unet, rows: int, call: int, size=(8, 8)) -> ldm_unet.Inputs:
    return ldm_unet.random_inputs(unet.config, rows, size, timestep=999 - call, tokens=5, seed=call)


def sample(unet, run: Run, loop: Loop, rows: Rows = PAIR, size=(8, 8), before_call=None, models=None) -> None:
    """Drive `run` through the loop as the WebUI host does. `models` are the UNets by the calls' `model`."""
    attached = None
    for index, call in enumerate(loop.calls):
        current = (models or {}).get(call.model, unet)
        if current is not attached:
            run.attach(current)
            attached = current
        if before_call:
            before_call(index)
        cut = run.next_step().drops_uncond and not call.host_skips
        stock = rows.cond if call.host_skips else rows.cond + rows.uncond
        run.begin_call(rows.cond if cut else stock, stock, rows.cond)
        inputs = call_inputs(current, rows.cond + rows.uncond, index, size)
        for part in host_parts(rows, cut, call.host_skips):
            current(*(None if t is None else t[part.start : part.stop] for t in inputs.args))


def traces(unet) -> list[str]:
    """What is left on a UNet: hooks in any module, and `forward` as an instance attribute."""
    found = []
    for name, module in unet.named_modules():
        for hooks in ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs"):
            found += [f"{name}.{hooks}" for _ in getattr(module, hooks, ())]
        if "forward" in vars(module):
            found.append(f"{name}.forward")
    return found
