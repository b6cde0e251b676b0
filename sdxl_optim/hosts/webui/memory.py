"""Where the loaded model's weights lie. It stays so between requests that ask for the same, and the first request that
does not undoes it."""

from __future__ import annotations

import sys

import torch

from modules import devices, lowvram, sd_models, sd_unet, shared
from sdxl_optim.hosts.webui.host_options import host_option
from sdxl_optim.hosts.webui.lowvram import HostLowvram, loads_into_main_memory
from sdxl_optim.hosts.webui.peaks import HighWater
from sdxl_optim.hosts.webui.vae import precision_of, tile_of
from sdxl_optim.planning.plan import Note
from sdxl_optim.report import JobReport
from sdxl_optim.settings import FieldPath, Memory, Settings
from sdxl_optim.techniques.memory import fp8
from sdxl_optim.techniques.memory.offload.meter import Meter
from sdxl_optim.techniques.memory.offload.mover import TEXT, UNET, VAE, Mover
from sdxl_optim.techniques.vae.patch import work_of
from sdxl_optim.techniques.vae.tiling import FACTOR
from sdxl_optim.unet.patching import replaced
from sdxl_optim.wording import joined

CPU = torch.device("cpu")
UNET_WORK = 20_000  # bytes a latent pixel and row that a call is expected to need, until it was measured
COLOURS_WORK = 24  # bytes a pixel of a picture that is put together from tiles
TEXT_WORK = 150_000_000
TINY_WORK = 640  # bytes a pixel, in half precision: three of its widest tensors, and a convolution's copies of two


class HostMeter(Meter):
    """Beside the others who measure."""

    def reset(self) -> None:
        self._water = HighWater(self.device, shared.mem_mon).start() if self.measures else None

    def peak(self) -> int:
        return self._water.read()[0] if self.measures else 0


class Placement:
    """The settings' offload and fp8 on one model, until `undo`."""

    def __init__(self, model, memory: Memory, notes: list[Note]):
        """notes: what is refused is added."""
        self.model, self.memory = model, memory
        self.fp8 = self.mover = None
        self._host: HostLowvram | None = None
        self.notes = notes
        self._loading = model._register_load_state_dict_pre_hook(self._before_load)
        try:
            self._place(model, memory, notes)
        except BaseException:
            self.undo(devices.device)
            raise

    def _place(self, model, memory: Memory, notes: list[Note]) -> None:
        if memory.weights == "fp8" and not _refused("Memory weights", _why_no_fp8(), notes):
            unet = model.model.diffusion_model
            self.fp8 = fp8.Fp8Weights(unet, on_layer=forget_lora, pending=lora_pending, merge=merge_lora)
        if memory.offload != "host" and not _refused("Memory offload", _why_no_offload(model), notes):
            self._host = HostLowvram(model) if lowvram.is_enabled(model) else None
            meter = HostMeter(devices.device, memory.budget)
            self.mover = Mover(_parts_of(model), devices.device, memory.offload, meter)
            if devices.device.type == "cpu":
                notes.append(Note("Memory offload", "there is no GPU here, so nothing is saved", refused=False))

    def undo(self, device: torch.device) -> None:
        """The weights as they were, on `device`."""
        self._loading.remove()
        if self.mover is not None:
            self.mover.close(device)
        if self.fp8 is not None:
            self.fp8.close(on_layer=forget_lora)
        if self._host is not None:
            self._host.restore()

    def _before_load(self, *args) -> None:
        """Other weights are about to be loaded into this model, which its host has moved to main memory before."""
        global _in_place
        if _in_place is self:
            _in_place = None
        self.undo(next(self.model.parameters()).device)

    def serves(self, memory: Memory) -> bool:
        return (self.memory.offload, self.memory.weights) == (memory.offload, memory.weights)

    def prepare(self, p, settings: Settings) -> None:
        """Before a pass of this request."""
        if self.mover is None:
            return
        self.mover.meter.budget = settings.memory.budget
        latents = p.width * p.height / 64
        if getattr(p, "is_hr_pass", False):
            latents = p.hr_upscale_to_x * p.hr_upscale_to_y / 64
        pixels, tile = int(latents * 64), tile_of(settings)
        at_once = pixels if tile is None else min(pixels, (tile * FACTOR) ** 2)
        self.mover.key = (latents, p.batch_size)
        self.mover.guess = {
            UNET: int(2 * p.batch_size * latents * UNET_WORK),
            VAE: work_of(at_once, precision_of(settings.vae)[0]) + pixels * COLOURS_WORK,
            TEXT: TEXT_WORK,
        }

    def facts(self) -> list[str]:
        facts = []
        if self.fp8 is not None:
            facts.append(f"UNet in fp8 saves {self.fp8.bytes_saved / 1e9:.2f} GB")
        if self.mover is not None:
            streamed = self.mover.streamed.get(UNET, 0)
            facts.append(f"{self.memory.offload} offload moved {self.mover.lane.moved / 1e9:.2f} GB")
            facts += [f"{streamed / 1e9:.2f} GB of the UNet pass through at each call"] * bool(streamed)
        return facts


_in_place: Placement | None = None
_under_way: tuple | None = None  # the request's p, settings and report


def _parts_of(model) -> dict[str, torch.nn.Module]:
    text = model.conditioner if hasattr(model, "conditioner") else model.cond_stage_model
    return {TEXT: text, UNET: model.model.diffusion_model, VAE: model.first_stage_model}


def foreseen(model, memory: Memory) -> tuple[list[str], list[Note]]:
    """What a `Placement` on `model` would be, in words, and what it would refuse; nothing is moved."""
    facts: list[str] = []
    notes: list[Note] = []
    if memory.weights == "fp8" and not _refused("Memory weights", _why_no_fp8(), notes):
        facts.append("UNet in fp8")
    if memory.offload != "host" and not _refused("Memory offload", _why_no_offload(model), notes):
        facts.append(joined([memory.offload, " ", "offload"]))
        if devices.device.type == "cpu":
            notes.append(Note("Memory offload", "there is no GPU here, so nothing is saved", refused=False))
    return facts, notes


def _refused(feature: str, reason: str | None, notes: list[Note]) -> bool:
    if reason:
        notes.append(Note(feature, reason))
    return bool(reason)


def _why_no_fp8() -> str | None:
    if devices.fp8:
        return "the WebUI's own fp8 storage is on"
    if sd_unet.current_unet is not None:
        return f"the UNet is run by {sd_unet.current_unet_option.label}"
    return fp8.why_not()


def _why_no_offload(model) -> str | None:
    if lowvram.is_enabled(model) and not loads_into_main_memory():
        return "the WebUI was started with --medvram or --lowvram, which moves the parts itself"
    if getattr(model, "is_sd3", False):
        return "SD 3 has other parts"
    if sd_unet.current_unet is not None:
        return f"the UNet is run by {sd_unet.current_unet_option.label}"
    return None


def unavailable() -> list[tuple[FieldPath, str | bool, str]]:
    """(path of a setting, its value, why that can't be had) of what no model of this host can have."""
    return []


def beside_previews(job) -> None:
    """A preview by the full VAE would call for it from another thread, while the UNet has the card."""
    if job.settings.memory.offload != "host" and shared.opts.show_progress_type == "Full":
        job.undo.enter_context(host_option("show_progress_type", "Approx NN"))
        job.report.add_note(Note("Memory offload", "previews are by Approx NN instead of the full VAE", refused=False))


def withdraw(memory: Memory) -> None:
    """A request begins: if it asks for something else than what is in place, undo that."""
    if _in_place is not None and not _in_place.serves(memory):
        _undo()


def on_model_loaded(model) -> None:
    """The host's callback. What waits in main memory for a model that it has thrown away is let go."""
    if _in_place is not None and next(_in_place.model.parameters()).is_meta:
        _undo()
    if loads_into_main_memory() and lowvram.is_enabled(model) and not hasattr(model, "cond_stage_model_empty_prompt"):
        _encode_piece_by_piece(model)
    elif _under_way is not None:
        ensure(*_under_way)


def follow_loads(p, job) -> None:
    """A model that the host loads while this request is under way, such as the refiner, goes to its place at once: the
    host makes it encode prompts before it samples with it. One that the host had kept in main memory is only taken up
    again, for which there is no callback."""
    global _under_way
    _under_way = p, job.settings, job.report

    def end() -> None:
        global _under_way
        _under_way = None

    def make(reload):
        def reload_and_place(*args, **more):
            model = reload(*args, **more)
            ensure(p, job.settings, job.report)
            return model

        return reload_and_place

    job.undo.callback(end)
    if not _is_the_hosts(job.settings.memory):
        job.undo.enter_context(replaced(sd_models, "reload_model_weights", make))


def _encode_piece_by_piece(model) -> None:
    """A model that is new is asked for an empty prompt next. The host would bring the text encoders to the card whole
    for it, which hold more than the smallest budget."""
    text = _parts_of(model)[TEXT]
    host = HostLowvram(model)
    mover = Mover({TEXT: text}, devices.device, "sequential", HostMeter(devices.device))

    def end(*args) -> None:
        hook.remove()
        mover.close(CPU)
        host.restore()

    hook = text.register_forward_hook(end, always_call=True)


def _undo() -> None:
    global _in_place
    placement, _in_place = _in_place, None
    model = placement.model
    stays = model is shared.sd_model and not lowvram.is_enabled(model)
    placement.undo(devices.device if stays else CPU)


def _is_the_hosts(memory: Memory) -> bool:
    return memory.offload == "host" and memory.weights == "host"


def ensure(p, settings: Settings, report: JobReport) -> None:
    """The settings hold for whichever model is loaded."""
    global _in_place
    memory = settings.memory
    if _is_the_hosts(memory):
        return
    model = shared.sd_model
    stale = _in_place is not None and _in_place.mover is not None and _in_place.mover.changed
    if _in_place is not None and (_in_place.model is not model or not _in_place.serves(memory) or stale):
        _undo()
    if _in_place is None:
        _in_place = Placement(model, memory, [])
        devices.torch_gc()
    elif _in_place.mover is not None:
        _in_place.mover.settle()
    for note in _in_place.notes:
        report.add_note(note)
    _in_place.prepare(p, settings)


def relieve() -> bool:
    """The part at work runs out of memory: what is not at work makes room. Returns whether it could."""
    return _in_place is not None and _in_place.mover is not None and _in_place.mover.relieve()


def decode_is_next(latents) -> None:
    """The tiny decoder is no part of the model: what it takes for one picture is free before it begins.

    latents: a tensor; hires fix has decoded its own before anybody is asked.
    """
    if _in_place is None or _in_place.mover is None or shared.opts.sd_vae_decode_method != "TAESD":
        return
    if not torch.is_tensor(latents):
        return
    height, width = (n * FACTOR for n in latents.shape[-2:])
    _in_place.mover.make_way(height * width * TINY_WORK * torch.finfo(devices.dtype).bits // 16)


def tell(report: JobReport) -> None:
    report.memory = _in_place.facts() if _in_place is not None else []


# --- the host's built-in LoRA, which merges into the weights while their layers run


def forget_lora(layer) -> None:
    """The layer's own weights, without any LoRA: the host merges anew what it wants at the layer's next call."""
    networks = sys.modules.get("networks")
    if networks is None or not getattr(layer, "network_current_names", ()):
        return
    with torch.no_grad():
        networks.network_restore_weights_from_backup(layer)
    layer.network_current_names = ()
    layer.network_weights_backup = layer.network_bias_backup = None


def lora_pending(layer) -> bool:
    """Whether the host will change this layer's weights at its next call."""
    networks = sys.modules.get("networks")
    if networks is None or shared.opts.lora_functional or getattr(layer, "network_layer_name", None) is None:
        return False
    wanted = tuple((n.name, n.te_multiplier, n.unet_multiplier, n.dyn_dim) for n in networks.loaded_networks)
    return getattr(layer, "network_current_names", ()) != wanted


def merge_lora(layer) -> None:
    """What the host would do in this call, done before it. The host then finds its work done."""
    sys.modules["networks"].network_apply_weights(layer)
