"""The tiny decoder's file, where the host looks for it, and the host's option that has it decode."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from pickle import UnpicklingError
from urllib.error import URLError

import torch
from safetensors.torch import load_file

from modules import paths_internal, sd_vae_taesd, shared
from sdxl_optim.settings import Settings
from sdxl_optim.wording import Text, message

OPTION = "sd_vae_decode_method"
METHODS = {"tiny": "TAESD", "full": "Full"}
WRONG_FILE = (OSError, URLError, EOFError, UnpicklingError, RuntimeError, ValueError, KeyError, TypeError)


def decoder_path() -> Path:
    """Where the host looks for the tiny decoder of the model that is loaded."""
    model = shared.sd_model  # on Forge, one without these names until the first request loads it
    kind = "taesd3" if getattr(model, "is_sd3", False) else "taesdxl" if getattr(model, "is_sdxl", True) else "taesd"
    if not getattr(model, "is_webui_legacy_model", lambda: True)():
        kind = "taef1"
    return Path(paths_internal.models_path, "VAE-taesd", f"{kind}_decoder.pth")


def why_not_at_hand() -> Text | None:
    """None when the tiny decoder is loaded; the host fetches it where it can. Else one sentence for the user."""
    try:
        sd_vae_taesd.decoder_model()
    except WRONG_FILE as error:
        return _refusal(error)
    return None


def why_unreadable() -> Text | None:
    """Whether the file that is there would be loaded, without loading it into the host: the same answer as
    `why_not_at_hand` gives for it."""
    path = decoder_path()
    stat = path.stat()
    error = _error_in(path, stat.st_mtime_ns, stat.st_size)
    return None if error is None else _refusal(error)


@lru_cache(maxsize=8)
def _error_in(path: Path, changed: int, size: int) -> Exception | None:
    try:
        _check(torch.load(path, map_location="cpu", weights_only=True))
    except WRONG_FILE as error:
        return error
    return None


def _refusal(error: Exception) -> Text:
    path = decoder_path()
    found = "cannot be read" if path.exists() else "is missing and could not be fetched"
    template = "{file} " + found + " ({error}); the full VAE is used. Put it into {folder}."
    return message(template, file=path.name, error=type(error).__name__, folder=path.parent)


def _check(weights: object) -> None:
    """Raises TypeError or RuntimeError where `weights` are not the state dict of a tiny decoder for the loaded model.

    The decoder to compare with is made without values: drawing them would move on torch's random numbers, of which a
    generation may be using some just now.
    """
    if not isinstance(weights, Mapping):
        raise TypeError(f"a {type(weights).__name__} instead of a dict of tensors")
    with torch.device("meta"):
        empty = sd_vae_taesd.decoder(16 if getattr(shared.sd_model, "is_sd3", False) else 4)
    wanted = {name: tensor.shape for name, tensor in empty.state_dict().items()}
    if {name: getattr(tensor, "shape", None) for name, tensor in weights.items()} != wanted:
        raise RuntimeError("its tensors are not those of a tiny decoder for the loaded model")


def copy_decoder(source: str) -> Text:
    """Copy a tiny decoder from elsewhere to where the host looks for it; the answer is one sentence for the user.

    source: a .pth or .safetensors file in TAESD's own layout (https://github.com/madebyollin/taesd). It is read as
    plain tensors and tried before anything is written.
    """
    if not source.strip():
        return "Name a file first."
    path, target = Path(source.strip().strip('"')), decoder_path()
    if not path.is_file():
        return message("There is no file {path}.", path=path)
    try:
        weights = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
        weights = {key.removeprefix("decoder."): value for key, value in weights.items()}
        _check(weights)
    except Exception as error:  # whatever is wrong with a file that a user picked, it is the file
        template = "{file} is not a TAESD decoder for this model ({error})."
        return message(template, file=path.name, error=type(error).__name__)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        torch.save(weights, target)
    except (OSError, RuntimeError) as error:
        return message("{file} can't be written ({error}).", file=target, error=type(error).__name__)
    sd_vae_taesd.sd_vae_taesd_models.pop(target.name, None)
    return message("Copied to {file}.", file=target)


def take_what_is_ours(p, settings: Settings) -> None:
    """The API's `infotext` field makes an override setting of the picture's "VAE Decoder", which our own setting had
    brought about and does again. The host would leave it behind where the user's config lacks the option."""
    if p.override_settings.get(OPTION, "") == METHODS.get(settings.vae.decoder):
        p.override_settings = {key: value for key, value in p.override_settings.items() if key != OPTION}
