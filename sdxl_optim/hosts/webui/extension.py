"""What happens at each of the host's events, which the script in scripts/ only forwards."""

from __future__ import annotations

import functools
import logging
from pathlib import Path

from modules import paths_internal, script_callbacks
from sdxl_optim.errors import SettingsError
from sdxl_optim.hosts.webui import adapter, infotext, options
from sdxl_optim.hosts.webui.active_runs import ActiveRuns
from sdxl_optim.hosts.webui.adapter import backend, memory, vae
from sdxl_optim.hosts.webui.api import add_api
from sdxl_optim.hosts.webui.arguments import settings_of
from sdxl_optim.hosts.webui.grid import Plots
from sdxl_optim.hosts.webui.host_options import host_option, override
from sdxl_optim.hosts.webui.job import Job, begin_job, end_job, log, refuse_request
from sdxl_optim.hosts.webui.lowvram import load_into_main_memory_if_chosen
from sdxl_optim.hosts.webui.measure import Measurer
from sdxl_optim.hosts.webui.passes import watch_sampler
from sdxl_optim.hosts.webui.references import StockRuns
from sdxl_optim.hosts.webui.request import attach, job_of
from sdxl_optim.hosts.webui.tab import BenchTab
from sdxl_optim.hosts.webui.tiny_decoder import METHODS, OPTION, take_what_is_ours
from sdxl_optim.hosts.webui.xyz import WrongSettings, add_axes, with_axes
from sdxl_optim.report import JobReport
from sdxl_optim.sentences import infotext_notes, infotext_result
from sdxl_optim.settings import Memory, Settings
from sdxl_optim.settings.preset_library import PresetLibrary
from sdxl_optim.techniques.tf32.patch import tf32


class Extension:
    """What outlives a request."""

    def __init__(self):
        self.presets = PresetLibrary(Path(paths_internal.data_path, "sdxl_optim_presets.json"))
        self.runs = ActiveRuns()
        self._stock_runs = StockRuns()
        self._measurer = Measurer()
        self._plots = Plots(self._measurer)
        self._tab = BenchTab(self._measurer)
        self._last_reports: dict[str, JobReport] = {}  # by tab

    def register_callbacks(self) -> None:
        _show_log()
        if message := self.presets.load():
            log.warning("presets: %s", message)
        load_into_main_memory_if_chosen()
        script_callbacks.on_cfg_denoiser(self.on_cfg_denoiser)
        script_callbacks.on_model_loaded(memory.weights.model_loaded)
        script_callbacks.on_before_ui(add_axes)
        script_callbacks.on_infotext_pasted(infotext.on_infotext_pasted)
        script_callbacks.on_image_grid(self._plots.on_image_grid)
        script_callbacks.on_ui_settings(options.add_options)
        script_callbacks.on_ui_tabs(self._tab.build)
        script_callbacks.on_app_started(add_api)

    def on_cfg_denoiser(self, params) -> None:
        adapter.sampling.on_cfg_denoiser(params, self.runs)

    def report_to_show(self, tab: str) -> JobReport | None:
        """What the accordion shows of the tab's last run."""
        return self._last_reports.get(tab) if options.chosen(options.REPORT) else None

    # --- a request, in the order of its events

    def before_process(self, p, tab: str, args: tuple) -> None:
        end_job(p)
        own = attach(p)
        own.stock_clock = None
        try:
            settings = Settings() if own.is_reference else with_axes(settings_of(args, self.presets), p)
        except SettingsError as error:
            self._last_reports.pop(tab, None)
            refuse_request(p, WrongSettings(error))
            return
        memory.weights.undo_if_changed(settings.memory if settings.enabled else Memory())
        backend.release_others(settings.backend.name if settings.enabled else "eager")
        self._plots.begin_cell(p, settings)
        if not settings.enabled:
            self._stock_runs.begins(p)
            return
        take_what_is_ours(p, settings)
        job = Job(settings, adapter, on_close=lambda job: self._keep_report(p, tab, job))
        begin_job(p, job)
        memory.weights.begin(p, job)
        if settings.steps is not None:
            p.steps = settings.steps
        if "sd_vae" not in p.override_settings and (fix := vae.wants_fix(settings.vae)):
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
        _choose_decoder(p, job, plan.config("vae.decoder"))
        memory.cheap_previews(job)
        backend.set_switches(job)
        job.undo.enter_context(tf32(*(plan.config("memory.cudnn_tf32") or ("host", "host"))))
        job.follow_model(p)

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
    return Extension()


def _show_log() -> None:
    """One line a run in the WebUI's console, which by default shows warnings alone."""
    if not log.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("[SDXL Optim] %(message)s"))
        log.addHandler(handler)
        log.propagate = False
    options.apply_log_level()


def _choose_decoder(p, job: Job, decoder: str | None) -> None:
    if decoder is None:
        return
    job.undo.enter_context(host_option(OPTION, METHODS[decoder]))
    job.report.decoder = METHODS[decoder]
    if decoder == "tiny":
        p.extra_generation_params["VAE Decoder"] = METHODS[decoder]
