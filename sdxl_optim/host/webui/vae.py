"""Which VAE decodes: the host's own option, set for one job and put back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError

from modules import paths_internal, sd_vae_taesd, shared
from modules.shared import opts

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
    except (OSError, URLError, RuntimeError, ValueError, KeyError) as error:
        path = decoder_path()
        found = "cannot be read" if path.exists() else "is missing and could not be fetched"
        return f"{path.name} {found} ({type(error).__name__}); the full VAE is used. Put it into {path.parent}."
    return None


@contextmanager
def decode_method(method: str) -> Iterator[None]:
    """While entered, the host decodes by `method`. Afterwards its option is as before, also where its config lacked it."""
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
