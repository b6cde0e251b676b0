"""What is known of a request before it begins: what diffusers, the models and this machine forbid."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

import diffusers
import torch

from sdxl_optim.hosts.standalone.vae import has_own_space
from sdxl_optim.sampling.facts import RequestFacts
from sdxl_optim.techniques.accumulation.patch import why_no_fp16_accumulation
from sdxl_optim.techniques.memory import fp8
from sdxl_optim.techniques.vae.patch import auto_precision
from sdxl_optim.techniques.vae.rules import TINY
from sdxl_optim.wording import Text, message

if TYPE_CHECKING:
    from sdxl_optim.hosts.standalone.generate import Models

OWN_NORMS = "diffusers' tiles have norms of their own; norms of the picture are to be had in the WebUI alone"
OWN_SPACE = "the model's latents have a mean and deviation of their own, and are brought to SDXL's"


def request_facts(models: Models) -> RequestFacts:
    device = models.base._execution_device  # where the parts come to; while they are offloaded, they are on the CPU
    cannot = {
        TINY: why_no_tiny_vae(models),
        "vae.tile_norms": OWN_NORMS,
        "memory.weights": why_no_fp8(),
        "memory.offload": why_no_offload(device),
        "memory.cudnn_tf32": why_no_tf32(device),
        "backend.fp16_accumulation": why_no_fp16_accumulation(),
    }
    known = {setting: reason for setting, reason in cannot.items() if reason}
    said = {TINY: OWN_SPACE} if has_own_space((models.refiner or models.base).vae.config) else {}
    return RequestFacts(known, said, device=device.type, vae_precision=auto_precision(device))


def why_no_tiny_vae(models: Models) -> Text | None:
    if models.tiny_vae is None:
        loading = (note.text for note in models.notes if note.feature == "Tiny VAE")
        return next(loading, "none was loaded; the model's VAE is used")
    given, wanted = models.tiny_vae.config.latent_channels, models.base.unet.config.out_channels
    if given == wanted:
        return None
    text = "it decodes latents of {given} channels, the model makes {wanted}; the model's VAE is used"
    return message(text, given=given, wanted=wanted)


def why_no_tf32(device: torch.device) -> Text | None:
    return None if device.type == "cuda" else "TF32 is a format of NVIDIA's cards, and there is none here"


def why_no_fp8() -> Text | None:
    if not hasattr(diffusers.ModelMixin, "enable_layerwise_casting"):
        text = "diffusers {version} can't store a model's weights in fp8; newer ones can"
        return message(text, version=diffusers.__version__)
    return fp8.why_not()


def why_no_offload(device: torch.device) -> Text | None:
    if device.type == "cpu":
        return "there is no GPU here whose memory it could save"
    return "the package accelerate is not installed" if find_spec("accelerate") is None else None
