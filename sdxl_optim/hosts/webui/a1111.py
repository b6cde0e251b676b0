"""AUTOMATIC1111's WebUI as a host."""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch

from modules import sd_hijack, sd_models, sd_unet, shared
from sdxl_optim.hosts.webui import attention, backend, memory, request_facts, sampling, vae
from sdxl_optim.hosts.webui.family import HostFamily
from sdxl_optim.hosts.webui.host_options import HostOptions
from sdxl_optim.hosts.webui.job import Job
from sdxl_optim.hosts.webui.placement import WeightsOnHost
from sdxl_optim.planning.plan import Plan
from sdxl_optim.report import JobReport
from sdxl_optim.run import Run
from sdxl_optim.sampling.facts import Facts, RequestFacts
from sdxl_optim.settings import Settings, Vae
from sdxl_optim.wording import Text


class A1111(HostFamily):
    def __init__(self, options: HostOptions):
        super().__init__(options)
        self.weights = WeightsOnHost()
        self._executions = backend.new_pool()

    # --- its model

    def loaded_model(self):
        return sd_models.model_data.sd_model

    def beside_the_model(self) -> Hashable:
        """The host exchanges the UNet only after the scripts' `process`."""
        return vae.loaded_vae(), id(sd_unet.current_unet)

    def latent_device(self) -> torch.device:
        return shared.sd_model.alphas_cumprod.device

    def token_length(self, text: str):
        return sd_hijack.model_hijack.get_prompt_lengths(text)[1]

    # --- a request

    def request_facts(self, p, settings: Settings, begins: bool) -> RequestFacts:
        return request_facts.request_facts(p, settings, self.loaded_model(), begins)

    def release_executions(self, but: str) -> None:
        self._executions.release_others(but)

    def wanted_vae(self, settings: Vae) -> str | None:
        return vae.wants_fix(settings)

    def vae_for(self, report: JobReport) -> vae.VaePatch:
        return vae.VaePatch(report, self.weights.free_others)

    def hold_options(self, job: Job) -> None:
        memory.cheap_previews(job, self.options)
        if job.plan.config("backend.attention") is not None:
            job.undo.enter_context(attention.sdpa(self.options))

    # --- a pass

    def why_no_backend(self, settings: Settings) -> Text | None:
        return backend.why_not(settings, self._executions)

    def why_no_backend_for_any_model(self) -> Text | None:
        return backend.reason_for_all_models()

    def gather_facts(self, p, sampler, settings: Settings, steps: int, func: Callable) -> Facts:
        return sampling.gather_facts(p, sampler, steps, func, self.why_no_backend(settings))

    def new_run(self, plan: Plan, name: str) -> Run:
        """What other backends keep on the device is freed, and weights whose layout they changed are put back."""
        backend_name = plan.config("backend") or "eager"
        self._executions.release_others(backend_name)
        return Run(plan, name, self._executions.get(backend_name))

    def call_begins(self, run: Run, params) -> None:
        sampling.call_begins(run, params)

    def stock_rows(self, params) -> int:
        return sampling.stock_rows(params)
