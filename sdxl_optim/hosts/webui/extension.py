"""What happens at each of the host's events. The script in scripts/ only forwards to these functions."""

from __future__ import annotations

import logging

from modules import script_callbacks
from sdxl_optim import settings as declared
from sdxl_optim.errors import SettingsError
from sdxl_optim.hosts.webui import adapter, grid, infotext, options, preset_ui, references, request, tab, ui
from sdxl_optim.hosts.webui.adapter import backend, memory, vae
from sdxl_optim.hosts.webui.api import add_api
from sdxl_optim.hosts.webui.host_options import host_option, override
from sdxl_optim.hosts.webui.job import Job, begin_job, end_job, log, refuse_request
from sdxl_optim.hosts.webui.lowvram import load_into_main_memory_if_chosen
from sdxl_optim.hosts.webui.passes import watch_sampler
from sdxl_optim.hosts.webui.request import job_of, measurement_of
from sdxl_optim.hosts.webui.stages import DECODE
from sdxl_optim.hosts.webui.tiny_decoder import METHODS, OPTION, take_what_is_ours
from sdxl_optim.hosts.webui.xyz import WrongSettings, add_axes, with_axes
from sdxl_optim.report import JobReport
from sdxl_optim.sentences import infotext_notes, infotext_result
from sdxl_optim.settings import Memory, Settings
from sdxl_optim.techniques.tf32.patch import tf32

last_report: dict[str, JobReport] = {}  # by tab


def register_callbacks() -> None:
    _show_log()
    preset_ui.load()
    load_into_main_memory_if_chosen()
    script_callbacks.on_cfg_denoiser(adapter.sampling.on_cfg_denoiser)
    script_callbacks.on_model_loaded(memory.weights.model_loaded)
    script_callbacks.on_before_ui(add_axes)
    script_callbacks.on_infotext_pasted(infotext.on_infotext_pasted)
    script_callbacks.on_image_grid(grid.on_image_grid)
    script_callbacks.on_ui_settings(options.add_options)
    script_callbacks.on_ui_tabs(tab.build)
    script_callbacks.on_app_started(add_api)


def _show_log() -> None:
    """One line a run in the WebUI's console, which by default shows warnings alone."""
    if not log.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("[SDXL Optim] %(message)s"))
        log.addHandler(handler)
        log.propagate = False
    options.apply_log_level()


def parse_args(args: tuple) -> Settings:
    """The script's arguments: the API's dict as the first, or the components' values in their order. Raises
    SettingsError."""
    if args and isinstance(args[0], dict):
        return declared.from_dict(args[0])
    return preset_ui.settings_of(ui.ui_fields(), args)


def before_process(p, tab: str, args: tuple) -> None:
    end_job(p)
    try:
        settings = Settings() if request.attach(p).is_reference else with_axes(parse_args(args), p)
    except SettingsError as error:
        last_report.pop(tab, None)
        refuse_request(p, WrongSettings(error))
        return
    memory.weights.undo_if_changed(settings.memory if settings.enabled else Memory())
    backend.release_others(settings.backend.name if settings.enabled else "eager")
    grid.begin_cell(p, settings)
    if not settings.enabled:
        references.stock_begins(p)
        return
    take_what_is_ours(p, settings)
    job = Job(settings, adapter, on_close=lambda job: _keep_report(p, tab, job))
    begin_job(p, job)
    memory.weights.begin(p, job)
    if settings.steps is not None:
        p.steps = settings.steps
    if "sd_vae" not in p.override_settings and (fix := vae.wants_fix(settings.vae)):
        override(p, "sd_vae", fix)


def report_to_show(tab: str) -> JobReport | None:
    """What the accordion shows of the tab's last run."""
    return last_report.get(tab) if options.chosen(options.REPORT) else None


def _keep_report(p, tab: str, job: Job) -> None:
    passes = job.report.all_passes
    if passes and all(p.finished and not p.stopped for p in passes):
        job.report.compared = references.compared(p, job.report.seconds)
    last_report[tab] = job.report


def process(p) -> None:
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


def _choose_decoder(p, job: Job, decoder: str | None) -> None:
    if decoder is None:
        return
    job.undo.enter_context(host_option(OPTION, METHODS[decoder]))
    job.report.decoder = METHODS[decoder]
    if decoder == "tiny":
        p.extra_generation_params["VAE Decoder"] = METHODS[decoder]


def before_batch(p) -> None:
    """The host may have loaded another model than the last batch ended with, such as the refiner."""
    if job := job_of(p):
        job.follow_model(p)


def before_sampling(p) -> None:
    if job := job_of(p):
        job.follow_model(p)
    watch_sampler(p, job_of(p))
    if measurement := measurement_of(p):
        measurement.sampling_begins()


def post_sample(p, latents) -> None:
    if job_of(p):
        memory.weights.before_decode(latents)
    if measurement := measurement_of(p):
        measurement.sampling_ends()


def postprocess_batch(p) -> None:
    if job := job_of(p):
        job.vae.report()
        memory.weights.report_to(job.report)
        job.stages.ends(DECODE)
    references.batch_ends(p)
    if measurement := measurement_of(p):
        measurement.decode_ends()


def postprocess(p, tab: str, processed) -> None:
    """A run without the extension leaves no report of an older one. (Not at its start: a page whose run ends just then
    may yet ask for its own.)"""
    if job_of(p) is None:
        references.stock_ends(p)
        last_report.pop(tab, None)
    if measurement := measurement_of(p):
        measurement.end(p, processed, job_of(p))
