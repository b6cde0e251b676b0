"""Loading: a local folder, a single file or a name on the Hugging Face hub → pipelines. Nothing is fetched in
vain.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderTiny, StableDiffusionXLImg2ImgPipeline, StableDiffusionXLPipeline
from huggingface_hub import HfApi, try_to_load_from_cache
from huggingface_hub.constants import HF_HUB_CACHE

from sdxl_optim.errors import SettingsError, Unsupported
from sdxl_optim.hosts.standalone.refusals import one_line
from sdxl_optim.hosts.standalone.samplers import DTYPES, SAMPLERS
from sdxl_optim.hosts.standalone.single_file import SingleFile
from sdxl_optim.sampling.note import Note
from sdxl_optim.wording import message

HUB_TIMEOUT = 10  # seconds
LATENT_CHANNELS = 4  # of SDXL


def check_device(name: str) -> torch.device:
    """auto takes the GPU where there is one. Raises SettingsError where there is none of that name."""
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(device for device, there in present.items() if there))
    if not present[name]:
        raise SettingsError(
            "--device",
            name,
            "auto, or a device that torch finds here: " + ", ".join(filter(present.get, present)),
        )
    return torch.device(name)


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """fp16 where a GPU computes, as the article does, fp32 on the CPU."""
    if chosen := DTYPES[name]:
        return getattr(torch, chosen)
    return torch.float32 if device.type == "cpu" else torch.float16


def load_base(name: str, device: torch.device, dtype: torch.dtype) -> StableDiffusionXLPipeline:
    """Raises SettingsError."""
    pipe = _load_pipeline("--model", name, StableDiffusionXLPipeline, device, dtype)
    if pipe.text_encoder is None:
        raise SettingsError("--model", name, "a base model, which has two text encoders; a refiner goes to --refiner")
    return pipe


def load_refiner(name: str, device: torch.device, dtype: torch.dtype) -> StableDiffusionXLImg2ImgPipeline:
    """Raises SettingsError."""
    return _load_pipeline("--refiner", name, StableDiffusionXLImg2ImgPipeline, device, dtype)


def load_tiny_vae(name: str, device: torch.device, dtype: torch.dtype) -> AutoencoderTiny:
    """Raises Unsupported: without it, the model's VAE does."""
    try:
        if Path(name).is_file():
            raise ValueError("a file; allowed: a folder in diffusers' format, or a name on the Hugging Face hub")
        local = not _must_fetch(name, "config.json")
        kind = AutoencoderTiny.load_config(name, local_files_only=local).get("_class_name")
        if kind != AutoencoderTiny.__name__:
            raise ValueError(f"it is an {kind}")
        vae = AutoencoderTiny.from_pretrained(name, torch_dtype=dtype, local_files_only=local)
    except (OSError, ValueError, _Unreachable) as error:
        raise Unsupported("Tiny VAE", f"{name} can't be had ({one_line(error)}); the model's VAE is used") from None
    return vae.to(device).eval()


def use_sampler(pipe, name: str | None, **changes: Any) -> list[Note]:
    """Give the pipeline the sampler of that name, with `changes` to its configuration; None keeps the model's own
    sampler. Returns what the sampler leaves out of the configuration, which it inherits from the model."""
    cls, own = SAMPLERS[name] if name else (None, {})
    if name or changes:
        kind = getattr(diffusers, cls) if cls else type(pipe.scheduler)
        pipe.scheduler = kind.from_config(pipe.scheduler.config, **{**own, **changes})
    takes, config = inspect.signature(type(pipe.scheduler).__init__).parameters, pipe.scheduler.config
    called = name or type(pipe.scheduler).__name__
    notes = []
    if config.get("rescale_betas_zero_snr") and "rescale_betas_zero_snr" not in takes:
        text = "{name} has no zero terminal SNR, which this model was trained with; its pictures lack light and dark"
        notes.append(Note("sampler", message(text, name=called), refused=False))
    if (config.get("rescale_betas_zero_snr") or "timestep_spacing" in changes) and "timestep_spacing" not in takes:
        text = "{name} has timesteps of its own; {spacing} ones are to be had with other samplers"
        spacing = changes.get("timestep_spacing", config.get("timestep_spacing"))
        notes.append(Note("sampler", message(text, name=called, spacing=spacing), refused=False))
    return notes


def _load_pipeline(option: str, name: str, cls, device, dtype):
    """Raises SettingsError."""
    try:
        pipe = (
            _from_single_file(option, name, cls, dtype) if Path(name).is_file() else _from_pretrained(cls, name, dtype)
        )
    except (SettingsError, ImportError, MemoryError, torch.cuda.OutOfMemoryError):
        raise
    except Exception as error:  # of diffusers, transformers, safetensors or the hub's client
        allowed = "a folder in diffusers' format, a .safetensors file, or a name on the Hugging Face hub"
        raise SettingsError(option, name, f"{allowed} ({one_line(error)})") from error
    lacks = [part for part in ("unet", "vae", "text_encoder_2", "tokenizer_2") if getattr(pipe, part, None) is None]
    if lacks:
        raise SettingsError(option, name, f"a whole model; this one lacks {', '.join(lacks)}")
    _check_channels(option, name, pipe.unet.config.in_channels, pipe.unet.config.out_channels)
    return pipe.to(device)


def _from_single_file(option: str, name: str, cls, dtype: torch.dtype):
    """With the schedule that the file asks for. Raises SettingsError where its configuration can't be had."""
    file = SingleFile(name)
    if file.in_channels is not None:
        _check_channels(option, name, file.in_channels)
    source = file.configuration
    try:
        _must_fetch(source, "model_index.json")
    except _Unreachable as error:
        folder = f"models--{source.replace('/', '--')}"
        raise SettingsError(
            option,
            name,
            f"a single file whose pipeline's configuration, that of {source}, is on this machine. It is fetched from"
            f" the Hugging Face hub once ({error}). Load any single file once while the hub can be reached, or copy"
            f" the folder {folder} from another machine's hub cache to {HF_HUB_CACHE}",
        ) from error
    pipe = cls.from_single_file(name, torch_dtype=dtype)
    if file.schedule:
        use_sampler(pipe, None, **file.schedule)
    return pipe


def _check_channels(option: str, name: str, takes: int, gives: int = LATENT_CHANNELS) -> None:
    """Raises SettingsError for a UNet that takes more than latents."""
    if takes != gives:
        allowed = (
            f"a text-to-image model, whose UNet takes the {gives} channels of a latent; this one takes {takes},"
            " as models for inpainting and for editing do"
        )
        raise SettingsError(option, name, allowed)


def _from_pretrained(cls, name: str, dtype: torch.dtype):
    """In half precision the fp16 files are taken where the model has them: half the size."""
    local = not _must_fetch(name, "model_index.json")
    if dtype != torch.float32:
        try:
            return cls.from_pretrained(name, torch_dtype=dtype, variant="fp16", local_files_only=local)
        except (OSError, ValueError):
            pass
    return cls.from_pretrained(name, torch_dtype=dtype, local_files_only=local)


class _Unreachable(Exception):
    pass


def _must_fetch(name: str, index: str) -> bool:
    """Whether `name` is on the hub and not on this machine. One request, so that being offline is noticed at
    once.
    """
    if Path(name).is_dir():
        return False
    if isinstance(try_to_load_from_cache(name, index), str):
        return False
    try:
        HfApi().model_info(name, timeout=HUB_TIMEOUT)
    except Exception as error:  # of whichever HTTP library the hub's client uses
        raise _Unreachable(f"not on this machine, and the hub answers: {one_line(error)}") from None
    return True
