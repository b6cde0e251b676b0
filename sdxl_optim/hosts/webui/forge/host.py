"""Forge and reForge as hosts. They move and cast weights inside each call, so where these lie, what the VAE computes in
and by what a call is made are their own affairs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, ClassVar

import torch

from modules import devices, sd_hijack, sd_models, shared
from sdxl_optim.hosts.webui.family import NAME, HostFamily
from sdxl_optim.hosts.webui.forge import sampling
from sdxl_optim.hosts.webui.request_facts import common_facts
from sdxl_optim.planning.plan import Plan
from sdxl_optim.run import Run
from sdxl_optim.sampling.facts import Facts, RequestFacts
from sdxl_optim.settings import Settings
from sdxl_optim.wording import Text, message

CASTS = message("{host} moves and casts weights in each call", host=NAME)
TILES = message("{host} decodes in tiles itself where memory is short", host=NAME)


class Forge(HostFamily):
    moves_weights = True
    cannot: ClassVar[Mapping[str, Text]] = {
        "memory.offload": message("{host} moves the model's parts itself", host=NAME),
        "memory.weights": message("{host} stores weights in fp8 itself, by an option of its own", host=NAME),
        "vae.precision": message("{host} chooses the VAE's precision itself (--vae-in-bf16, --vae-in-fp32)", host=NAME),
        "vae.tiling": TILES,
        "vae.tile_norms": TILES,
        "backend.attention": message("{host} chooses its attention itself, at its start", host=NAME),
    }

    # --- its model

    def loaded_model(self):
        """Forge has a stand-in while none is loaded."""
        model = sd_models.model_data.sd_model
        return model if getattr(model, "forge_objects", None) is not None else None

    def latent_device(self) -> torch.device:
        return devices.device

    def token_length(self, text: str) -> int:
        return sd_hijack.model_hijack.get_prompt_lengths(text, shared.sd_model.cond_stage_model)[1]

    @contextmanager
    def model_kept_as_it_is(self) -> Iterator[None]:
        """DDIM and its like give the model a schedule of their own."""
        model, name = shared.sd_model, "alphas_cumprod"
        before = vars(model).get(name)
        try:
            yield
        finally:
            if before is not None:
                setattr(model, name, before)

    # --- a request

    def request_facts(self, p, settings: Settings, begins: bool) -> RequestFacts:
        facts = common_facts(p, settings, begins)
        return replace(facts, cannot={**facts.cannot, **self.cannot})

    # --- a pass

    def why_no_backend(self, settings: Settings) -> Text | None:
        return None if settings.backend.name == "eager" else CASTS

    def why_no_backend_for_any_model(self) -> Text:
        return CASTS

    def gather_facts(self, p, sampler, settings: Settings, steps: int, func: Callable) -> Facts:
        return sampling.gather_facts(p, sampler, steps, func, self.why_no_backend(settings))

    def new_run(self, plan: Plan, name: str) -> Run:
        return sampling.ForgeRun(plan, name)

    def call_begins(self, run: Any, params) -> None:
        run.follow(params.denoiser)

    def stock_rows(self, params) -> int:
        return sampling.stock_rows(params)
