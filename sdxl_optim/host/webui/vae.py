"""Which VAE decodes: the host's own option, set for one job and put back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError

import torch
from safetensors.torch import load_file

from modules import paths_internal, sd_vae_taesd, shared
from modules.shared import opts
from sdxl_optim.plan import Note
from sdxl_optim.settings import Settings
from sdxl_optim.words import words

OPTION = "sd_vae_decode_method"
METHODS = {"tiny": "TAESD", "full": "Full"}


def decoder_path() -> Path:
    """Where the host looks for the tiny decoder of the model that is loaded."""
    kind = "taesd3" if shared.sd_model.is_sd3 else "taesdxl" if shared.sd_model.is_sdxl else "taesd"
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
    if settings.vae.decoder == "full":
        return ["full VAE"], []
    if settings.vae.decoder != "tiny":
        return [], []
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
        sd_vae_taesd.decoder(16 if shared.sd_model.is_sd3 else 4).load_state_dict(weights)
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


@contextmanager
def decode_method(method: str) -> Iterator[None]:
    """While entered, the host decodes by `method`. Afterwards its option is as before, also where its config lacked
    it."""
    missing = object()
    before = opts.data.get(OPTION, missing)
    opts.set(OPTION, method, run_callbacks=False)
    try:
        yield
    finally:
        if before is missing:
            opts.data.pop(OPTION, None)
        else:
            opts.data[OPTION] = before
