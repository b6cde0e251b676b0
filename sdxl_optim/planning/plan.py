"""Settings + facts of the run → Plan: what will happen on this model, size and sampler, and what was refused and
why."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from sdxl_optim import settings as declared
from sdxl_optim.sampling import loop as schedule
from sdxl_optim.sampling.loop import Counts, Loop, Rows, StepPlan
from sdxl_optim.settings import DeepCache, FreeU, Settings
from sdxl_optim.techniques.deepcache.calibration import Calibration, full_steps_adaptive, is_worthwhile
from sdxl_optim.wording import joined, words

FEW_STEPS = 12


@dataclass(frozen=True)
class Note:
    """One sentence for the user about one technique. `refused` when it does not run."""

    feature: str
    text: str
    refused: bool = True

    def __str__(self) -> str:
        return joined([self.feature, " ", "refused" if self.refused else "note", ": ", self.text])


@dataclass(frozen=True)
class Facts:
    """What the host knows of a sampling pass before its first step.

    depth: number of the UNet's input blocks, which is also the number of DeepCache branches.
    freeu_stages: how many of the UNet's resolutions FreeU can act on.
    no_unet: reason why the UNet's blocks can't be reached (a foreign sd_unet), or None.
    no_cut: reason why the uncond rows can't be dropped (AND prompts, …), or None.
    timesteps: of each step's first call, in the model's own count.
    calibration: of the model, for adaptive DeepCache; else no_calibration is the reason.
    cached_share: of a full call's arithmetic that a call cached by DeepCache at the settings' branch still does.
    no_backend: reason why the settings' backend can't run, or None.
    no_cache: reason why the UNet's deep features can't be kept for later steps, or None.
    """

    loop: Loop
    rows: Rows
    cfg_scale: float
    depth: int
    freeu_stages: int = 2
    no_unet: str | None = None
    no_cut: str | None = None
    timesteps: tuple[float, ...] = ()
    calibration: Calibration | None = None
    no_calibration: str | None = "this host has no calibration"
    cached_share: float | None = None
    no_backend: str | None = None
    no_cache: str | None = None


@dataclass(frozen=True)
class Plan:
    """What will run. `steps` has one StepPlan a sampler step; empty where the loop can't be foreseen.

    backend: the name of the one that runs the calls.
    """

    loop: Loop
    rows: Rows
    freeu: FreeU | None = None
    deepcache: DeepCache | None = None
    steps: tuple[StepPlan, ...] = ()
    always: StepPlan = StepPlan()  # for loops that can't be foreseen
    notes: tuple[Note, ...] = ()
    prediction: Counts | None = field(default=None)
    cached_share: float | None = None
    backend: str = "eager"

    @property
    def cut_from(self) -> int | None:
        """The first step without guidance, or None."""
        return next((i for i, step in enumerate(self.steps) if step.cut), None)

    def work(self, counts: Counts) -> float | None:
        """About which share of a stock run's sampling arithmetic `counts` come to; None where it can't be told."""
        if not counts.stock_rows or (counts.cached_rows and self.cached_share is None):
            return None
        spared = counts.cached_rows * (1 - (self.cached_share or 0.0))
        return (counts.rows - spared) / counts.stock_rows

    def step(self, i: int) -> StepPlan:
        return self.steps[i] if i < len(self.steps) else self.always


def make_plan(settings: Settings, facts: Facts) -> Plan:
    """Decide everything that can be decided before the first step."""
    notes = _preset(settings)
    freeu = _freeu(settings, facts, notes)
    cut_from = _cutoff(settings, facts, notes)
    deepcache = _deepcache(settings, facts, notes)
    backend = _backend(settings, facts, notes)
    loop, n = facts.loop, facts.loop.n
    if not loop.foreseeable:
        always = StepPlan(cut=cut_from == 0, freeu=freeu is not None)
        return Plan(loop, facts.rows, freeu, None, (), always, tuple(notes), backend=backend)

    freeu_steps = schedule.window(freeu.start, freeu.stop, n) if freeu else ()
    cached_steps = _cached_steps(deepcache, facts) if deepcache else frozenset()
    if deepcache and not cached_steps:
        notes.append(Note("DeepCache", "with these settings every step is full and nothing is reused", refused=False))
        deepcache = None
    steps = tuple(
        StepPlan(i in cached_steps, cut_from is not None and i >= cut_from, i in freeu_steps) for i in range(n)
    )
    prediction = schedule.predict(steps, loop, facts.rows)
    last = steps[-1] if steps else StepPlan()
    return Plan(
        loop,
        facts.rows,
        freeu,
        deepcache,
        steps,
        last,
        tuple(notes),
        prediction,
        cached_share=facts.cached_share,
        backend=backend,
    )


def _preset(settings: Settings) -> list[Note]:
    """What the user set otherwise than the preset has it."""
    notes = []
    by_path = {f.path: f for f in declared.fields()}
    for path, value in declared.preset_values(settings.preset).items():
        used = declared.get(settings, path)
        if used != value:
            names = {"preset": settings.preset, "title": by_path[path].title, "value": value, "used": used}
            text = words("{preset} has {title} {value}; {used} is used, as set", **names)
            notes.append(Note("preset", text, refused=False))
    return notes


def _freeu(settings: Settings, facts: Facts, notes: list[Note]) -> FreeU | None:
    freeu = settings.freeu
    if not freeu.enabled:
        return None
    if facts.no_unet:
        notes.append(Note("FreeU", facts.no_unet))
    elif facts.freeu_stages == 0:
        notes.append(Note("FreeU", "this model's UNet has no stage that it acts on"))
    elif not facts.loop.foreseeable and (freeu.start, freeu.stop) != (0.0, 1.0):
        notes.append(
            Note(
                "FreeU",
                "this sampler's number of steps can't be foreseen, so a start/stop window can't be kept",
            )
        )
    else:
        return freeu
    return None


def _cutoff(settings: Settings, facts: Facts, notes: list[Note]) -> int | None:
    """The first step without uncond rows, or None."""
    if not settings.cfg_cutoff.enabled:
        return None
    if facts.no_cut:
        notes.append(Note("CFG cutoff", facts.no_cut))
    elif facts.cfg_scale == 1:
        return 0
    elif not facts.loop.foreseeable:
        notes.append(Note("CFG cutoff", "this sampler's number of steps can't be foreseen"))
    else:
        return int(settings.cfg_cutoff.stop * facts.loop.n)
    return None


def _deepcache(settings: Settings, facts: Facts, notes: list[Note]) -> DeepCache | None:
    deepcache = settings.deepcache
    if not deepcache.enabled:
        return None
    if facts.no_unet or facts.no_cache:
        notes.append(Note("DeepCache", facts.no_unet or facts.no_cache))
    elif not facts.loop.foreseeable:
        notes.append(Note("DeepCache", "this sampler's number of steps can't be foreseen"))
    elif deepcache.cache_branch_id >= facts.depth:
        text = f"branch {deepcache.cache_branch_id} is deeper than this model's UNet; allowed: 0 to {facts.depth - 1}"
        notes.append(Note("DeepCache", text))
    else:
        n = len(schedule.window(deepcache.start, deepcache.stop, facts.loop.n))
        if 0 < n < FEW_STEPS:
            text = f"with {n} steps there is little to reuse and the picture changes much; use {FEW_STEPS} or more"
            notes.append(Note("DeepCache", text, refused=False))
        return _calibrated(deepcache, facts, notes)
    return None


def _calibrated(deepcache: DeepCache, facts: Facts, notes: list[Note]) -> DeepCache:
    """As asked, or uniform where adaptive has no calibration to go by, or one that promises little."""
    if deepcache.mode != "adaptive":
        return deepcache
    reason = facts.no_calibration
    if facts.calibration is not None:
        inside = schedule.window(deepcache.start, deepcache.stop, facts.loop.n)
        uniform = schedule.full_steps_uniform(len(inside), deepcache.cache_interval)
        if facts.calibration.branch != deepcache.cache_branch_id:
            reason = f"the calibration is of branch {facts.calibration.branch}, not {deepcache.cache_branch_id}"
        elif is_worthwhile(facts.calibration, [facts.timesteps[i] for i in inside], uniform):
            return deepcache
        else:
            reason = "the calibration promises too small a gain in this run"
    notes.append(Note("DeepCache", f"full steps are uniform, not adaptive: {reason}", refused=False))
    return replace(deepcache, mode="uniform")


def _backend(settings: Settings, facts: Facts, notes: list[Note]) -> str:
    name = settings.backend.name
    if facts.no_backend is None:
        return name
    notes.append(Note(words("backend {name}", name=name), joined([facts.no_backend, "the calls ran eagerly"], by="; ")))
    return "eager"


def _cached_steps(deepcache: DeepCache, facts: Facts) -> frozenset[int]:
    inside = schedule.window(deepcache.start, deepcache.stop, facts.loop.n)
    if deepcache.mode == "uniform":
        full = schedule.full_steps_uniform(len(inside), deepcache.cache_interval)
    elif deepcache.mode == "adaptive":
        count = -(-len(inside) // deepcache.cache_interval)
        full = full_steps_adaptive(facts.calibration, [facts.timesteps[i] for i in inside], count)
    else:
        full = schedule.full_steps_nonuniform(len(inside), deepcache.cache_interval, deepcache.center, deepcache.power)
    return frozenset(i for k, i in enumerate(inside) if k not in full)
