"""What happens at each of the host's events, which the script in scripts/ only forwards."""

from __future__ import annotations

import functools
import logging
from pathlib import Path

from modules import paths_internal, script_callbacks
from sdxl_optim.errors import SettingsError
from sdxl_optim.hosts.webui import infotext, options
from sdxl_optim.hosts.webui.active_runs import ActiveRuns
from sdxl_optim.hosts.webui.adapter import chosen_host
from sdxl_optim.hosts.webui.api import PlanApi
from sdxl_optim.hosts.webui.arguments import settings_of
from sdxl_optim.hosts.webui.family import HostFamily
from sdxl_optim.hosts.webui.grid import Plots
from sdxl_optim.hosts.webui.host_options import override
from sdxl_optim.hosts.webui.job import Job, begin_job, end_job, log, refuse_request
from sdxl_optim.hosts.webui.lowvram import load_into_main_memory_if_chosen
from sdxl_optim.hosts.webui.measure import Measurer
from sdxl_optim.hosts.webui.passes import watch_sampler
from sdxl_optim.hosts.webui.request import attach, job_of, measurement_of
from sdxl_optim.hosts.webui.stock_runs import StockRuns
from sdxl_optim.hosts.webui.tab import BenchTab
from sdxl_optim.hosts.webui.tiny_decoder import METHODS, OPTION, take_what_is_ours
from sdxl_optim.hosts.webui.xyz import WrongSettings, add_axes, with_axes
from sdxl_optim.report import JobReport
from sdxl_optim.sentences import infotext_notes, infotext_result
from sdxl_optim.settings import Memory, Settings
from sdxl_optim.settings.preset_library import PresetLibrary
from sdxl_optim.techniques.accumulation.patch import fp16_accumulation
from sdxl_optim.techniques.tf32.patch import tf32


class Extension:
    """What outlives a request."""

    def __init__(self, host: HostFamily):
        self.host = host
        self.presets = PresetLibrary(Path(paths_internal.data_path, "sdxl_optim_presets.json"))
        self.runs = ActiveRuns()
        self._stock_runs = StockRuns()
        self._measurer = Measurer()
        self._plots = Plots(self._measurer)
        self._tab = BenchTab(host, self._measurer)
        self._last_reports: dict[str, JobReport] = {}  # by tab

    def register_callbacks(self) -> None:
        _show_log()
        if message := self.presets.load():
            log.warning("presets: %s", message)
        if not self.host.moves_weights:
            load_into_main_memory_if_chosen()
        script_callbacks.on_cfg_denoiser(self.on_cfg_denoiser)
        script_callbacks.on_model_loaded(self.host.weights.model_loaded)
        script_callbacks.on_before_ui(add_axes)
        script_callbacks.on_infotext_pasted(infotext.on_infotext_pasted)
        script_callbacks.on_image_grid(self._plots.on_image_grid)
        script_callbacks.on_ui_settings(self.add_options)
        script_callbacks.on_ui_tabs(self._tab.build)
        script_callbacks.on_app_started(PlanApi(self.host).add)

    def add_options(self) -> None:
        options.add_options(without=[options.LOAD] if self.host.moves_weights else [])

    def on_cfg_denoiser(self, params) -> None:
        """A model evaluation begins."""
        run = self.runs.run_of(params.denoiser)
        if run is not None:
            self.host.call_begins(run, params)
            return
        self.runs.foreign_call_begins()
        p = getattr(params.denoiser, "p", None)
        if p is not None and (measurement := measurement_of(p)):
            measurement.count(self.host.stock_rows(params))

    def report_to_show(self, tab: str) -> JobReport | None:
        """What the accordion shows of the tab's last run."""
        return self._last_reports.get(tab) if options.chosen(options.REPORT) else None

    # --- a request, in the order of its events

    def before_process(self, p, tab: str, args: tuple) -> None:
        end_job(p)
        own = attach(p)
        own.stock_clock = None
        own.decoders.clear()
        try:
            settings = Settings() if own.is_reference else with_axes(settings_of(args, self.presets), p)
        except SettingsError as error:
            self._last_reports.pop(tab, None)
            refuse_request(p, WrongSettings(error))
            return
        self.host.weights.undo_if_changed(settings.memory if settings.enabled else Memory())
        self.host.release_executions(settings.backend.name if settings.enabled else "eager")
        self._plots.begin_cell(p, settings)
        if not settings.enabled:
            self._stock_runs.begins(p)
            return
        take_what_is_ours(p, settings)
        job = Job(settings, self.host, on_close=lambda job: self._keep_report(p, tab, job))
        begin_job(p, job)
        self.host.weights.begin(p, job)
        if settings.steps is not None:
            p.steps = settings.steps
        if "sd_vae" not in p.override_settings and (fix := self.host.wanted_vae(settings.vae)):
            override(p, "sd_vae", fix)

    def _keep_report(self, p, tab: str, job: Job) -> None:
        passes = job.report.all_passes
        if passes and all(one.finished and not one.stopped for one in passes):
            job.report.compared = self._stock_runs.compared(p, job.report.seconds)
        self._last_reports[tab] = job.report

    def process(self, p) -> None:
        job = job_of(p)
        if job is None:
            return
        # X/Y/Z plot shares one dict between its cells: what is written for this one must not show in the next.
        p.extra_generation_params = {
            **p.extra_generation_params,
            **infotext.write(job.settings),
            infotext.RESULT: lambda p, **_: infotext_result(job.report, p.iteration),
            infotext.REFUSED: lambda p, **_: infotext_notes(job.report, p.iteration),
        }
        plan = job.decide(p)
        self._choose_decoder(p, job, plan.config("vae.decoder"))
        self.host.hold_options(job)
        if plan.config("backend.fp16_accumulation"):
            job.undo.enter_context(fp16_accumulation())
        job.undo.enter_context(tf32(*(plan.config("memory.cudnn_tf32") or ("host", "host"))))
        job.follow_model(p)

    def _choose_decoder(self, p, job: Job, decoder: str | None) -> None:
        if decoder is None:
            return
        job.undo.enter_context(self.host.options.held(OPTION, METHODS[decoder]))
        job.report.decoder = METHODS[decoder]
        if decoder == "tiny":
            p.extra_generation_params["VAE Decoder"] = METHODS[decoder]

    def before_batch(self, p) -> None:
        """The host may have loaded another model than the last batch ended with, such as the refiner."""
        if job := job_of(p):
            job.follow_model(p)

    def before_sampling(self, p) -> None:
        for observer in attach(p).observers:
            observer.sampling_begins(p)
        watch_sampler(p, job_of(p), self.runs)

    def post_sample(self, p, latents) -> None:
        for observer in attach(p).observers:
            observer.sampling_ends(p, latents)

    def postprocess_batch(self, p) -> None:
        for observer in attach(p).observers:
            observer.decode_ends(p)

    def postprocess(self, p, tab: str, processed) -> None:
        """A run without the extension leaves no report of an older one. (Not at its start: a page whose run ends just
        then may yet ask for its own.)"""
        if job_of(p) is None:
            self._last_reports.pop(tab, None)
        for observer in attach(p).observers:
            observer.ends(p, processed)


@functools.cache
def extension() -> Extension:
    """The one of this process. It outlives a reload of the page, which runs the script in scripts/ once more."""
    return Extension(chosen_host())


def _show_log() -> None:
    """One line a run in the WebUI's console, which by default shows warnings alone."""
    if not log.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("[SDXL Optim] %(message)s"))
        log.addHandler(handler)
        log.propagate = False
    options.apply_log_level()
