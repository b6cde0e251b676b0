"""The host's own choice of attention, changed for one request."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from modules import sd_hijack
from sdxl_optim.hosts.webui.host_options import HostOptions

OPTION = "cross_attention_optimization"
SDPA = ("sdp", "sdp-no-mem")  # the host's names of what calls torch's scaled dot product attention


def is_sdpa() -> bool:
    return getattr(sd_hijack.current_optimizer, "name", None) in SDPA


def why_no_sdpa() -> str | None:
    return None if _sdpa() else "this WebUI's list of attention optimisations has none by torch"


def _sdpa():
    return next((optimizer for optimizer in sd_hijack.optimizers if optimizer.name == SDPA[0]), None)


@contextmanager
def sdpa(options: HostOptions) -> Iterator[None]:
    """While entered, attention is by torch, also in a model that is loaded meanwhile; then by the user's choice."""
    if is_sdpa():
        yield
        return
    try:
        with options.held(OPTION, _sdpa().title()):
            sd_hijack.model_hijack.apply_optimizations()
            yield
    finally:
        sd_hijack.model_hijack.apply_optimizations()
