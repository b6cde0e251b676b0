"""Which WebUI this is: AUTOMATIC1111's, or one of the Forge family, which descends from it. Asked here and nowhere
else. And what each of them answers the extension: the contract of a host."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Hashable, Mapping
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    import torch

    from sdxl_optim.hosts.webui.host_options import HostOptions
    from sdxl_optim.hosts.webui.job import Job
    from sdxl_optim.planning.plan import Plan, RequestPlan
    from sdxl_optim.report import JobReport
    from sdxl_optim.run import Run
    from sdxl_optim.sampling.facts import Facts, RequestFacts
    from sdxl_optim.settings import Memory, Settings, Vae
    from sdxl_optim.wording import Text

FORGE = find_spec("modules_forge") is not None  # all of the family
REFORGE = FORGE and find_spec("ldm_patched") is not None
NAME = "reForge" if REFORGE else "Forge" if FORGE else "WebUI"

# The flags of what is chosen at the start alone; nothing where the host has none.
FP32 = "--all-in-fp32" if FORGE else "--no-half"
CHANNELS_LAST = "--force-channels-last" if REFORGE else "" if FORGE else "--opt-channelslast"


def k_diffusion_sampling() -> ModuleType:
    """The module of k-diffusion's samplers that the host uses."""
    chosen = getattr(importlib.import_module("modules.sd_samplers_common"), "sampling", None)  # reForge has two
    return chosen or importlib.import_module("k_diffusion.sampling")


class HostsWeights:
    """Where the model's weights lie. By default that is the host's own affair."""

    def undo_if_changed(self, memory: Memory) -> None:
        """A request with these settings begins: what is placed for others goes back."""

    def begin(self, p, job: Job) -> None:
        """From now to the end of `job`, each model that is loaded goes to its place at once."""

    def apply(self, p, job: Job) -> None:
        """Before a pass, and before a model's first call: what was decided holds for the model that is loaded."""

    def before_decode(self, latents) -> None:
        """Latents are decoded next, perhaps by a model that is placed by nobody."""

    def free_others(self) -> bool:
        """The part at work runs out of memory: what is not at work makes room. Returns whether it could."""
        return False

    def report_to(self, report: JobReport) -> None:
        """Put into the report what was done for this request so far."""

    def model_loaded(self, model) -> None:
        """The host has loaded a model."""


class HostsVae:
    """The VAE of whichever model is at work, for one request. By default it is as the host has it."""

    def follow(self, plan: RequestPlan) -> None:
        """Attach what was decided to the model that is loaded now."""

    def report(self) -> None:
        """Put into the report what was done so far."""

    def close(self) -> None:
        """Undo it."""


class HostFamily:
    """A WebUI as the extension needs it. What is not overridden is left to the host."""

    moves_weights: ClassVar[bool] = False  # by itself, whatever its command line says
    cannot: ClassVar[Mapping[str, Text]] = {}  # by setting, what no model and no machine can have in it

    def __init__(self, options: HostOptions):
        self.weights = HostsWeights()
        self.options = options

    # --- its model

    def loaded_model(self):
        """The model, or None while none is loaded."""
        raise NotImplementedError

    def beside_the_model(self) -> Hashable:
        """What of the host decides with the model, and is exchanged by itself: another VAE, say."""
        return None

    def latent_device(self) -> torch.device:
        """Where samplers expect the latents."""
        raise NotImplementedError

    def token_length(self, text: str) -> Any:
        """The number of tokens that the model's text encoder makes of a prompt, padding included; not an integer where
        the host can't tell."""
        raise NotImplementedError

    def model_kept_as_it_is(self) -> AbstractContextManager:
        """Context manager around making a sampler that is not used."""
        return nullcontext()

    # --- a request

    def request_facts(self, p, settings: Settings, begins: bool) -> RequestFacts:
        """begins: whether the request begins now, and what it needs may be fetched. Otherwise nothing is loaded."""
        raise NotImplementedError

    def release_executions(self, but: str) -> None:
        """Free what the backends other than the named one keep."""

    def wanted_vae(self, settings: Vae) -> str | None:
        """The VAE file that the host should load for these settings."""
        return None

    def vae_for(self, report: JobReport) -> HostsVae:
        """The VAE of a request, whose report tells what it did."""
        return HostsVae()

    def hold_options(self, job: Job) -> None:
        """Set the host's options as decided, until the job's end."""

    # --- a pass

    def why_no_backend(self, settings: Settings) -> Text | None:
        """Why the settings' backend can't run with the model that is loaded."""
        raise NotImplementedError

    def why_no_backend_for_any_model(self) -> Text | None:
        return None

    def gather_facts(self, p, sampler, settings: Settings, steps: int, func: Callable) -> Facts:
        """What is known before the sampler's loop, whose launch_sampling was given `steps` and `func`."""
        raise NotImplementedError

    def new_run(self, plan: Plan, name: str) -> Run:
        raise NotImplementedError

    def call_begins(self, run: Run, params) -> None:
        """The host's callback before a model evaluation, by whose CFGDenoiserParams a call of `run` begins."""
        raise NotImplementedError

    def stock_rows(self, params) -> int:
        """The rows that the host itself puts through the UNet for this evaluation."""
        raise NotImplementedError
