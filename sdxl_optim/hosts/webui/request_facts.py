"""What is known of a request before it begins: what this WebUI, its model and this machine forbid. The live plan and
the run ask the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from modules import devices, shared
from sdxl_optim.hosts.webui import attention, memory
from sdxl_optim.hosts.webui.request import attach
from sdxl_optim.hosts.webui.tiny_decoder import OPTION, decoder_path, why_not_at_hand, why_unreadable
from sdxl_optim.hosts.webui.vae import has_coders, has_fix, largest_tile, will_have_fix
from sdxl_optim.sampling.facts import RequestFacts
from sdxl_optim.settings import Settings
from sdxl_optim.techniques.accumulation.patch import why_no_fp16_accumulation
from sdxl_optim.techniques.vae.patch import auto_precision
from sdxl_optim.techniques.vae.rules import TINY, Precision
from sdxl_optim.wording import Text, message

NO_CODERS = "this model's VAE has no encoder and decoder that could be reached"


def request_facts(p, settings: Settings, model, begins: bool) -> RequestFacts:
    """begins: whether the request begins now, and what it needs may be fetched. Otherwise nothing is loaded."""
    facts = common_facts(p, settings, begins)
    no_coders = None if has_coders(model) else NO_CODERS
    more = {
        "backend.attention": attention.why_no_sdpa(),
        "memory.weights": memory.why_no_fp8(),
        "memory.offload": memory.why_no_offload(model),
        "vae.precision": no_coders,
        "vae.tiling": no_coders,
    }
    said = dict(facts.said)
    if shared.opts.show_progress_type == "Full":
        said["memory.offload"] = "previews are by Approx NN instead of the full VAE"
    fix = has_fix() if begins else will_have_fix(p, settings.vae)
    facts = replace(
        facts,
        cannot={**facts.cannot, **{setting: reason for setting, reason in more.items() if reason}},
        said=said,
        vae_precision=auto_precision(devices.device, fix),
    )
    return replace(facts, largest_tile=largest_tile(settings, Precision().decide(settings, facts).config))


def common_facts(p, settings: Settings, begins: bool) -> RequestFacts:
    """What AUTOMATIC1111's WebUI and its relatives share: the tiny decoder is the host's own, and torch's switches are
    torch's."""
    cannot: dict[str, Text | None] = {"backend.fp16_accumulation": why_no_fp16_accumulation()}
    said: dict[str, Text] = {}
    if OPTION in p.override_settings:
        text = "the request's own setting {option} = {chosen} is used"
        cannot["vae.decoder"] = message(text, option=OPTION, chosen=p.override_settings[OPTION])
    elif settings.vae.decoder == "tiny":
        if begins:
            cannot[TINY] = _once(p, decoder_path(), why_not_at_hand)
        elif decoder_path().exists():
            cannot[TINY] = why_unreadable()
        else:
            said[TINY] = message("{file} is fetched when it is first used", file=decoder_path().name)
    known = {setting: reason for setting, reason in cannot.items() if reason}
    return RequestFacts(known, said, devices.device.type)


def _once(p, path: Path, why_not: Callable[[], Text | None]) -> Text | None:
    """The host fetches the file where it can, and that is not tried again at each change between base and refiner."""
    asked = attach(p).decoders
    if path not in asked:
        asked[path] = why_not()
    return asked[path]
