"""The precision and the tiles of the host's VAE for one request, and VAEs made for fp16."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from modules import devices, sd_vae, shared
from sdxl_optim.hosts.webui.family import HostsVae
from sdxl_optim.planning.plan import RequestPlan
from sdxl_optim.report import JobReport
from sdxl_optim.sampling.note import Note
from sdxl_optim.settings import Settings, Vae
from sdxl_optim.techniques.memory.offload.mover import room_within
from sdxl_optim.techniques.memory.offload.part import VAE
from sdxl_optim.techniques.vae.counts import VaeReport
from sdxl_optim.techniques.vae.patch import DTYPES, computes_bf16, vae_attached
from sdxl_optim.techniques.vae.patch import largest_tile as largest_tile_within
from sdxl_optim.techniques.vae.rules import Tiles
from sdxl_optim.techniques.vae.tiling import FACTOR

WEIGHTS = 200_000_000  # bytes of a VAE, and what else has to be there while it decodes (SDXL's in half precision)


def fp16_fix() -> str | None:
    """The name of a VAE made for fp16 in the host's VAE folder (sdxl_vae_fp16_fix, sdxl-vae-fp16-fix, …), or None."""
    if has_fix():
        return loaded_vae()
    return next((name for name in sd_vae.vae_dict if _is_fix(name)), None)


def _is_fix(name: str) -> bool:
    return "fp16" in name.lower() and "fix" in name.lower()


def wants_fix(settings: Vae) -> str | None:
    """The VAE that the host should load for this job: auto, on a card without bf16, where there is one."""
    if settings.precision != "auto" or devices.device.type != "cuda" or computes_bf16(devices.device):
        return None
    if shared.cmd_opts.freeze_settings:
        return None
    return fp16_fix() if getattr(shared.sd_model, "is_sdxl", False) else None


def loaded_vae() -> str | None:
    """The name of the VAE's own file, where it is not the checkpoint's."""
    return Path(sd_vae.loaded_vae_file).name if sd_vae.loaded_vae_file else None


def has_fix() -> bool:
    """Whether a VAE made for fp16 is loaded."""
    return _is_fix(loaded_vae() or "")


def will_have_fix(p, settings: Vae) -> bool:
    """Whether a VAE made for fp16 decodes the request `p`, which has not begun: the host loads what the request's own
    settings name, and else what `wants_fix` says."""
    if "sd_vae" in p.override_settings:
        return _is_fix(str(p.override_settings["sd_vae"]))
    return has_fix() or wants_fix(settings) is not None


def has_coders(model) -> bool:
    """Whether the model's VAE has an encoder and a decoder that can be reached."""
    vae = getattr(model, "first_stage_model", None)
    return hasattr(vae, "encoder") and hasattr(vae, "decoder")


def dtype_of(precision: str | None):
    """torch's, of what was decided; None: the host's own."""
    return devices.dtype_vae if precision is None else DTYPES[precision]


def largest_tile(settings: Settings, precision: str | None) -> int | None:
    """Pixels along the side of the largest tile that decodes within the budget of offload; None for any."""
    if settings.memory.offload != "staged" or not settings.memory.budget:
        return None
    room = room_within(int(settings.memory.budget * 1e9) - WEIGHTS, VAE)
    return largest_tile_within(room, dtype_of(precision)) * FACTOR


class VaePatch(HostsVae):
    """The decided precision and tiles on the VAE of whichever model is at work, until closed."""

    def __init__(self, report: JobReport, free_memory: Callable[[], bool]):
        """free_memory: asked for memory where the VAE runs out of it; returns whether there is more."""
        self._report, self._free_memory = report, free_memory
        self._patched: tuple | None = None  # the VAE with what was decided for it
        self._seen = VaeReport()
        self._undo = ExitStack()

    def follow(self, plan: RequestPlan) -> None:
        """Attach to the model that is loaded, if it is another one than before."""
        vae = getattr(shared.sd_model, "first_stage_model", None)
        precision: str | None = plan.config("vae.precision")
        tiles: Tiles | None = plan.config("vae.tiling")
        wanted = (vae, precision, tiles) if precision or tiles else None
        if wanted == self._patched:
            return
        self._undo.close()
        self._patched = wanted
        if vae is None or wanted is None:
            return
        dtype = None if precision is None else DTYPES[precision]
        size = None if tiles is None else tiles.size // FACTOR
        norms = "tile" if tiles is None else tiles.norms
        self._undo.enter_context(
            vae_attached(vae.encoder, vae.decoder, dtype, size, self._seen, self._free_memory, norms)
        )

    def report(self) -> None:
        """Put what was done so far into the report."""
        self._report.vae = self._seen
        for text in self._seen.retries:
            self._report.add_note(Note("VAE", text, refused=False))

    def close(self) -> None:
        self._undo.close()
        self.report()
