"""Which VAE decodes, and how: the host's own options, set for one job and put back, and the VAE's patch."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from urllib.error import URLError

import torch
from safetensors.torch import load_file

from modules import devices, paths_internal, sd_vae, sd_vae_taesd, shared
from sdxl_optim.planning.plan import Note
from sdxl_optim.report import JobReport
from sdxl_optim.settings import Settings, Vae
from sdxl_optim.techniques.memory.offload.mover import room_within
from sdxl_optim.techniques.memory.offload.part import VAE
from sdxl_optim.techniques.vae.patch import VaeReport, computes_bf16, largest_tile, pick_precision, vae_attached
from sdxl_optim.techniques.vae.tiling import FACTOR
from sdxl_optim.wording import joined, words

OPTION = "sd_vae_decode_method"
METHODS = {"tiny": "TAESD", "full": "Full"}
IN_TILES = joined(["VAE in tiles"])
WEIGHTS = 200_000_000  # bytes of a VAE, and what else has to be there while it decodes


def decoder_path() -> Path:
    """Where the host looks for the tiny decoder of the model that is loaded."""
    model = shared.sd_model  # on Forge, one without these names until the first request loads it
    kind = "taesd3" if getattr(model, "is_sd3", False) else "taesdxl" if getattr(model, "is_sdxl", True) else "taesd"
    if not getattr(model, "is_webui_legacy_model", lambda: True)():
        kind = "taef1"
    return Path(paths_internal.models_path, "VAE-taesd", f"{kind}_decoder.pth")


def why_no_tiny_decoder() -> str | None:
    """None when the tiny decoder is at hand; the host fetches it where it can. Else one sentence for the user."""
    try:
        sd_vae_taesd.decoder_model()
    except (OSError, URLError, RuntimeError, ValueError, KeyError, TypeError) as error:
        path = decoder_path()
        found = "cannot be read" if path.exists() else "is missing and could not be fetched"
        template = "{file} " + found + " ({error}); the full VAE is used. Put it into {folder}."
        return words(template, file=path.name, error=type(error).__name__, folder=path.parent)
    return None


def foreseen_decoder(settings: Settings) -> tuple[list[str], list[Note]]:
    """What will decode, in words, and what there is to say of it; without loading or fetching anything."""
    if settings.vae.decoder != "tiny":
        facts = ["full VAE"] if settings.vae.decoder == "full" else []
        return facts + ([IN_TILES] if settings.vae.tiling else []), []
    if decoder_path().exists():
        return ["Tiny VAE"], []
    text = words("{file} is fetched when it is first used", file=decoder_path().name)
    return ["Tiny VAE"], [Note("Tiny VAE", text, refused=False)]


def copy_decoder(source: str) -> str:
    """Copy a tiny decoder from elsewhere to where the host looks for it; the answer is one sentence for the user.

    source: a .pth or .safetensors file in TAESD's own layout (https://github.com/madebyollin/taesd). It is read as
    plain tensors and tried before anything is written.
    """
    if not source.strip():
        return "Name a file first."
    path, target = Path(source.strip().strip('"')), decoder_path()
    if not path.is_file():
        return words("There is no file {path}.", path=path)
    try:
        weights = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
        weights = {key.removeprefix("decoder."): value for key, value in weights.items()}
        sd_vae_taesd.decoder(16 if getattr(shared.sd_model, "is_sd3", False) else 4).load_state_dict(weights)
    except Exception as error:  # whatever is wrong with a file that a user picked, it is the file
        template = "{file} is not a TAESD decoder for this model ({error})."
        return words(template, file=path.name, error=type(error).__name__)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        torch.save(weights, target)
    except (OSError, RuntimeError) as error:
        return words("{file} can't be written ({error}).", file=target, error=type(error).__name__)
    sd_vae_taesd.sd_vae_taesd_models.pop(target.name, None)
    return words("Copied to {file}.", file=target)


def fp16_fix() -> str | None:
    """The name of a VAE made for fp16 in the host's VAE folder (sdxl_vae_fp16_fix, sdxl-vae-fp16-fix, …), or None."""
    if sd_vae.loaded_vae_file and _is_fix(Path(sd_vae.loaded_vae_file).name):
        return Path(sd_vae.loaded_vae_file).name
    return next((name for name in sd_vae.vae_dict if _is_fix(name)), None)


def _is_fix(name: str) -> bool:
    return "fp16" in name.lower() and "fix" in name.lower()


def wants_fix(settings: Vae) -> str | None:
    """The VAE that the host should load for this job: auto, on a card without bf16, where there is one."""
    if settings.precision != "auto" or devices.device.type != "cuda" or computes_bf16(devices.device):
        return None
    return fp16_fix() if getattr(shared.sd_model, "is_sdxl", False) else None


def precision_of(settings: Vae) -> tuple[torch.dtype, str | None]:
    """In what the VAE will compute, and the reason why it is not what was wanted, or None."""
    fixed = bool(sd_vae.loaded_vae_file) and _is_fix(Path(sd_vae.loaded_vae_file).name)
    dtype, reason = pick_precision(settings.precision, devices.device, fixed)
    return dtype or devices.dtype_vae, reason


def tile_of(settings: Settings) -> int | None:
    """Side of a tile in latents, or None: no larger than what decodes within the budget of offload."""
    if not settings.vae.tiling:
        return None
    asked = settings.vae.tile_size // FACTOR
    if settings.memory.offload != "staged" or not settings.memory.budget:
        return asked
    room = room_within(int(settings.memory.budget * 1e9) - WEIGHTS, VAE)
    return min(asked, largest_tile(room, precision_of(settings.vae)[0]))


class VaePatch:
    """The settings' precision and tiles on the VAE of whichever model is at work, until closed."""

    def __init__(self, settings: Settings, report: JobReport, free_others: Callable[[], bool]):
        """free_others: asked for memory where the VAE runs out of it; returns whether there is more."""
        self._settings, self._report, self._free_others = settings, report, free_others
        self._vae = None
        self._seen = VaeReport()
        self._undo = ExitStack()

    @property
    def wanted(self) -> bool:
        return self._settings.vae.tiling or self._settings.vae.precision != "host"

    def follow(self) -> None:
        """Attach to the model that is loaded, if it is another one than before."""
        vae = getattr(shared.sd_model, "first_stage_model", None)
        if not self.wanted or vae is self._vae:
            return
        self._undo.close()
        self._vae = vae
        if not (hasattr(vae, "encoder") and hasattr(vae, "decoder")):
            self._report.add_note(Note("VAE", "this model's VAE has no encoder and decoder that could be reached"))
            return
        dtype, reason = precision_of(self._settings.vae)
        if reason:
            self._report.add_note(Note("VAE precision", reason, refused=False))
        tile = tile_of(self._settings)
        if tile and tile * FACTOR < self._settings.vae.tile_size:
            text = words("tiles of {size}, as larger ones need more than the budget", size=tile * FACTOR)
            self._report.add_note(Note("VAE tiling", text, refused=False))
        wanted = None if self._settings.vae.precision == "host" else dtype
        self._undo.enter_context(
            vae_attached(
                vae.encoder, vae.decoder, wanted, tile, self._seen, self._free_others, self._settings.vae.tile_norms
            )
        )

    def tell(self) -> None:
        """Put what was done so far into the report."""
        self._report.vae = self._seen.facts()
        for text in self._seen.retries:
            self._report.add_note(Note("VAE", text, refused=False))

    def close(self) -> None:
        self._undo.close()
        self.tell()
