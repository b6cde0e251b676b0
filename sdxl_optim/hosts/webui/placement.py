"""Where the weights of the loaded model are: in main memory or on the device, in 8 bits or in their own precision."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from modules import devices, lowvram, sd_models, shared
from sdxl_optim.hosts.webui import lora
from sdxl_optim.hosts.webui.family import HostsWeights
from sdxl_optim.hosts.webui.lowvram import HostLowvram, loads_into_main_memory
from sdxl_optim.hosts.webui.peaks import HighWater
from sdxl_optim.hosts.webui.vae import dtype_of
from sdxl_optim.planning.plan import RequestPlan
from sdxl_optim.report import JobReport
from sdxl_optim.settings import Memory
from sdxl_optim.techniques.memory.counts import MemoryReport
from sdxl_optim.techniques.memory.fp8 import Fp8Weights
from sdxl_optim.techniques.memory.offload.meter import Meter
from sdxl_optim.techniques.memory.offload.mover import Mover
from sdxl_optim.techniques.memory.offload.part import TEXT, UNET, VAE
from sdxl_optim.techniques.vae.patch import work_of
from sdxl_optim.techniques.vae.tiling import FACTOR
from sdxl_optim.unet.patching import replaced

if TYPE_CHECKING:
    from sdxl_optim.hosts.webui.job import Job

CPU = torch.device("cpu")
# What the calls need beside weights. UNet and text encoders: assumed, from 0.66 GB for two rows of SDXL at 1024×1024 in
# half precision; the first call measures it.
UNET_WORK = 20_000  # bytes a latent pixel and row
TEXT_WORK = 150_000_000  # bytes
COLOURS_WORK = 24  # bytes a pixel of a picture that is put together from tiles: two times three colours in fp32
TINY_WORK = 640  # bytes a pixel, in half precision: three of its widest tensors, and a convolution's copies of two


class HostMeter(Meter):
    """Shares torch's peak counters with the WebUI's memory monitor."""

    def reset(self) -> None:
        self._water = HighWater(self.device, shared.mem_mon).start() if self.measures else None

    def peak(self) -> int:
        return self._water.read()[0] if self._water is not None else 0


def parts_of(model) -> dict[str, torch.nn.Module]:
    text = model.conditioner if hasattr(model, "conditioner") else model.cond_stage_model
    return {TEXT: text, UNET: model.model.diffusion_model, VAE: model.first_stage_model}


def _decided(plan: RequestPlan) -> tuple:
    return plan.config("memory.offload"), plan.config("memory.weights")


class Placement:
    """The decided offload and fp8 on one model, until `undo`."""

    def __init__(self, model, asked: Memory, plan: RequestPlan, on_load: Callable[[Placement], None]):
        """asked: the settings that it answers; plan: what was decided of them for this model. on_load: called before
        other weights are loaded into the model; the placement is undone then."""
        self.model, self._asked, self._decided = model, asked, _decided(plan)
        self._on_load = on_load
        self._fp8: Fp8Weights | None = None
        self.mover: Mover | None = None
        self._lowvram: HostLowvram | None = None
        self._loading = model._register_load_state_dict_pre_hook(self._before_load)
        try:
            self._place(plan)
        except BaseException:
            self.undo(devices.device)
            raise

    def answers(self, memory: Memory) -> bool:
        """Whether it was made for the same choices. (The budget may be another one for each request.)"""
        return (self._asked.offload, self._asked.weights) == (memory.offload, memory.weights)

    def holds(self, plan: RequestPlan) -> bool:
        """Whether what was decided is decided now: the same settings may be refused at one time and not at another."""
        return self._decided == _decided(plan)

    def _place(self, plan: RequestPlan) -> None:
        offload = plan.config("memory.offload")
        if plan.config("memory.weights") == "fp8":
            unet = self.model.model.diffusion_model
            self._fp8 = Fp8Weights(unet, on_layer=lora.unmerge, pending=lora.merge_pending, merge=lora.merge)
        if offload is not None:
            self._lowvram = HostLowvram(self.model) if lowvram.is_enabled(self.model) else None
            meter = HostMeter(devices.device, self._asked.budget)
            self.mover = Mover(parts_of(self.model), devices.device, offload, meter)

    def undo(self, device: torch.device) -> None:
        """The weights as they were, on `device`."""
        self._loading.remove()
        if self.mover is not None:
            self.mover.close(device)
        if self._fp8 is not None:
            self._fp8.close(on_layer=lora.unmerge)
        if self._lowvram is not None:
            self._lowvram.restore()

    def _before_load(self, *args) -> None:
        """Other weights are about to be loaded into the model, which the WebUI has moved to main memory before."""
        self._on_load(self)
        self.undo(next(self.model.parameters()).device)

    @property
    def discarded(self) -> bool:
        """Whether the WebUI has thrown the model away."""
        return next(self.model.parameters()).is_meta

    @property
    def stale(self) -> bool:
        """Whether the model's layers were replaced, so that it has to be placed again."""
        return self.mover is not None and self.mover.stale

    @property
    def bytes_copied(self) -> int:
        """To the device, since it was made."""
        return 0 if self.mover is None else self.mover.copies.bytes_copied

    def before_pass(self, p, budget: float, plan: RequestPlan) -> None:
        """Tell the mover what size the next pass of `p` has, and how much memory its calls may need."""
        if self.mover is None:
            return
        latents = p.width * p.height / 64
        if getattr(p, "is_hr_pass", False):
            latents = p.hr_upscale_to_x * p.hr_upscale_to_y / 64
        pixels, tiles = int(latents * 64), plan.config("vae.tiling")
        at_once = pixels if tiles is None else min(pixels, tiles.size**2)
        guess = {
            UNET: int(2 * p.batch_size * latents * UNET_WORK),
            VAE: work_of(at_once, dtype_of(plan.config("vae.precision"))) + pixels * COLOURS_WORK,
            TEXT: TEXT_WORK,
        }
        self.mover.begin_pass((latents, p.batch_size), guess, budget)

    def happened(self, bytes_copied: int) -> MemoryReport:
        """bytes_copied: those of the request that is reported."""
        saved = None if self._fp8 is None else self._fp8.bytes_saved
        if self.mover is None:
            return MemoryReport(self._fp8 is not None, saved)
        streamed = self.mover.bytes_streamed.get(UNET, 0)
        return MemoryReport(self._fp8 is not None, saved, self.mover.policy.name, bytes_copied, streamed)


@dataclass(eq=False)
class _Request:
    p: object
    job: Job
    copied_before: int  # bytes copied to the device when it began


class WeightsOnHost(HostsWeights):
    """The owner of the placement, which is kept between requests with the same memory settings. The calls, in order:

    undo_if_changed  a request begins, with the extension on or off
    begin            with the extension on; until the request's end, each model that the WebUI loads is placed at once
    apply            before a pass, and wherever the model may have changed
    before_decode    latents are about to be decoded
    report_to        whenever the report is to be up to date
    end              called by the request's own end

    model_loaded is the WebUI's callback, free_others the VAE's when it runs out of memory.
    """

    def __init__(self) -> None:
        self.placement: Placement | None = None
        self._requests: list[_Request] = []  # under way; one may generate inside another
        self._copied = 0  # bytes, by placements that were undone

    # --- a request

    def undo_if_changed(self, memory: Memory) -> None:
        """Undo the placement if the request that begins asks for something else."""
        if self.placement is not None and not self.placement.answers(memory):
            self._undo()

    def begin(self, p, job) -> None:
        """The WebUI encodes prompts by a model (such as the refiner) as soon as it has loaded it, before any event of a
        script. It calls on_model_loaded for a model that it reads from a file; one that it kept in main memory it only
        hands to its SdModelData."""
        request = _Request(p, job, self._bytes_copied)
        self._requests.append(request)
        job.undo.callback(self.end, request)
        if not _left_to_host(job.settings.memory):
            job.undo.enter_context(replaced(sd_models.model_data, "set_sd_model", self._placing))

    def _placing(self, original: Callable) -> Callable:
        def set_sd_model(model, already_loaded: bool = False):
            original(model, already_loaded)
            if already_loaded:
                self._place_for_request()

        return set_sd_model

    def apply(self, p, job: Job) -> None:
        """Place whichever model is loaded as was decided for it."""
        memory = job.settings.memory
        if _left_to_host(memory):
            return
        model, now, plan = shared.sd_model, self.placement, job.decide(p)
        if now is not None and (now.model is not model or not now.answers(memory) or not now.holds(plan) or now.stale):
            self._undo()
        if self.placement is None:
            self.placement = Placement(model, memory, plan, self._forget)
            devices.torch_gc()
        elif self.placement.mover is not None:
            self.placement.mover.resync()
        self.placement.before_pass(p, memory.budget, plan)

    def before_decode(self, latents) -> None:
        """Make room for the tiny decoder, which is no part of the model.

        latents: [B, 4, H, W]; or what hires fix has decoded by itself, a list.
        """
        mover = self._mover
        if mover is None or shared.opts.sd_vae_decode_method != "TAESD" or not torch.is_tensor(latents):
            return
        height, width = (n * FACTOR for n in latents.shape[-2:])
        mover.reserve(height * width * TINY_WORK * torch.finfo(devices.dtype).bits // 16)

    def free_others(self) -> bool:
        """The part that works runs out of memory: offload the others. Returns whether that made room."""
        return self._mover is not None and self._mover.free_others()

    def report_to(self, report: JobReport) -> None:
        """Tell the report of a request that is under way where the weights are."""
        request = next((r for r in self._requests if r.job.report is report), None)
        if request is not None:
            copied = self._bytes_copied - request.copied_before
            report.memory = None if self.placement is None else self.placement.happened(copied)

    def end(self, request: _Request) -> None:
        self.report_to(request.job.report)
        self._requests.remove(request)
        inside = self._bytes_copied - request.copied_before
        for around in self._requests:  # whose own bytes these are not
            around.copied_before += inside

    # --- the model

    def model_loaded(self, model) -> None:
        """The WebUI has loaded weights, into a new model or into the one that it had."""
        if self.placement is not None and self.placement.discarded:
            self._undo()
        if self._requests:
            self._place_for_request()
        placed = self._mover is not None and self.placement is not None and self.placement.model is model
        if not placed and loads_into_main_memory() and lowvram.is_enabled(model) and _is_new(model):
            _encode_piece_by_piece(model)

    def _place_for_request(self) -> None:
        request = self._requests[-1]
        self.apply(request.p, request.job)

    def _undo(self) -> None:
        placement = self.placement
        if placement is None:
            return
        self._forget(placement)
        stays = placement.model is shared.sd_model and not lowvram.is_enabled(placement.model)
        placement.undo(devices.device if stays else CPU)

    def _forget(self, placement: Placement) -> None:
        """It is being undone."""
        if placement is self.placement:
            self._copied += placement.bytes_copied
            self.placement = None

    @property
    def _mover(self) -> Mover | None:
        return None if self.placement is None else self.placement.mover

    @property
    def _bytes_copied(self) -> int:
        """To the device, by all placements so far."""
        return self._copied + (0 if self.placement is None else self.placement.bytes_copied)


def _left_to_host(memory: Memory) -> bool:
    return memory.offload == "host" and memory.weights == "host"


def _is_new(model) -> bool:
    """Whether the WebUI is about to encode an empty prompt by it, as it does once for each model."""
    return not hasattr(model, "cond_stage_model_empty_prompt")


def _encode_piece_by_piece(model) -> None:
    """The WebUI would bring the text encoders to the device whole to encode the empty prompt; they are larger than the
    smallest budget."""
    text = parts_of(model)[TEXT]
    host = HostLowvram(model)
    mover = Mover({TEXT: text}, devices.device, "sequential", HostMeter(devices.device))

    def end(*args) -> None:
        hook.remove()
        mover.close(CPU)
        host.restore()

    hook = text.register_forward_hook(end, always_call=True)
