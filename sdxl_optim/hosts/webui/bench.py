"""Benchmarks inside the WebUI: a case and a prompt → a request of the host's own, measured; and the thread they run
in."""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass

from PIL import Image

from modules import errors, scripts, shared
from modules.call_queue import queue_lock
from modules.processing import StableDiffusionProcessingTxt2Img, process_images
from sdxl_optim import settings as declared
from sdxl_optim.bench.cases import Case, Prompt
from sdxl_optim.bench.results import Results, Row
from sdxl_optim.bench.runner import Host, Progress, Runner, Stopped
from sdxl_optim.hosts.webui.family import CHANNELS_LAST, FP32, NAME, HostFamily
from sdxl_optim.hosts.webui.measure import Measurer
from sdxl_optim.hosts.webui.tiny_decoder import why_not_at_hand
from sdxl_optim.hosts.webui.ui import TITLE

JOB = "sdxl_optim_bench"

# Why the WebUI can't do between two pictures what the article does to a whole pipeline.
WHY_NOT = {
    "fp32": f"the WebUI's precision is chosen when it is started ({FP32})",
    "channels-last": f"chosen when the WebUI is started ({CHANNELS_LAST})" if CHANNELS_LAST else f"not in {NAME}",
    "vae fp16 fix": "choose that VAE in the WebUI, and run another benchmark",
    "vae slicing": "the WebUI decodes picture by picture always",
}


@dataclass(frozen=True)
class Template:
    """What all requests of a benchmark share."""

    steps: int
    cfg: float
    width: int
    height: int
    sampler: str
    negative: str = ""
    refiner: str = ""


class WebUIHost(Host):
    """The runner's host."""

    def __init__(self, template: Template, host: HostFamily, measurer: Measurer):
        self.template = template
        self._host, self._measurer = host, measurer

    def why_not(self, case: Case) -> str:
        if case.change:
            return WHY_NOT[case.change]
        if case.together:
            return "the WebUI makes each picture to its end before the next"
        if case.refiner_steps is not None:
            return "the WebUI's refiner works as an ensemble of experts alone"
        if case.switch_at is not None and not self.template.refiner:
            return "no refiner checkpoint was chosen"
        no_backend = self._host.why_no_backend(case.settings)
        if no_backend:
            return f"{case.settings.backend.name}: {no_backend}"
        for name, reason in self._host.cannot.items():
            if declared.acts(case.settings, name):
                return str(reason)
        known = self._host.loaded_model() is not None  # which tells the decoder's name; Forge loads it for a picture
        return str((known and case.settings.vae.decoder == "tiny" and why_not_at_hand()) or "")

    def opened(self, case: Case) -> AbstractContextManager:
        return nullcontext()

    def make(self, case: Case, prompt: Prompt) -> tuple[Image.Image, Row, str]:
        made: list[tuple[Image.Image, Row, str]] = []
        with queue_lock, closing(self._request(case, prompt)) as p:
            shared.state.begin(job=JOB)
            try:
                self._measurer.begin(p, lambda row, done: made.append((done.images[0], row, done.infotexts[0])))
                process_images(p)
            finally:
                shared.state.end()
                shared.total_tqdm.clear()
        if not made:
            raise Stopped
        return made[0]

    def _request(self, case: Case, prompt: Prompt) -> StableDiffusionProcessingTxt2Img:
        t = self.template
        p = StableDiffusionProcessingTxt2Img(
            sd_model=shared.sd_model,
            prompt=prompt.text,
            negative_prompt=t.negative,
            seed=prompt.seed,
            sampler_name=t.sampler,
            steps=case.steps or t.steps,
            cfg_scale=t.cfg if case.cfg is None else case.cfg,
            width=t.width,
            height=t.height,
            refiner_checkpoint=t.refiner if case.refines else None,
            refiner_switch_at=case.switch_at,
            do_not_save_samples=True,
            do_not_save_grid=True,
            override_settings={},
        )
        p.is_api = True  # the page's own components are not asked
        p.scripts = scripts.scripts_txt2img
        p.script_args = _script_args(case)
        return p


def _script_args(case: Case) -> tuple:
    """All scripts as they are when the page is opened, but ours."""
    runner = scripts.scripts_txt2img
    args = [getattr(component, "value", None) for component in runner.inputs]
    args[0] = 0  # no selectable script
    ours = next(script for script in runner.alwayson_scripts if script.title() == TITLE)
    args[ours.args_from] = declared.to_dict(case.settings)
    return tuple(args)


class BenchJob:
    """One benchmark in a thread of its own: it goes on when the page is closed."""

    def __init__(self, runner: Runner):
        self.runner = runner
        self.progress: Progress | None = None
        self.error = ""
        self.stopping = False
        self._thread = threading.Thread(target=self._run, daemon=True, name=JOB)
        self._thread.start()

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    @property
    def results(self) -> Results:
        return self.runner.results

    def stop(self) -> None:
        """End as soon as the picture under way lets go; it is not kept."""
        self.stopping = True
        self.runner.stop()
        if shared.state.job == JOB:
            shared.state.interrupt()

    def _run(self) -> None:
        try:
            self.runner.run(lambda progress: setattr(self, "progress", progress))
        except Exception as error:
            errors.report("the benchmark ended", exc_info=True)
            self.error = f"{type(error).__name__}: {error}"
