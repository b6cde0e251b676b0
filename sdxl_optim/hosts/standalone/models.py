"""Loading: a local folder, a single file or a name on the Hugging Face hub → pipelines. Nothing is fetched in
vain.
"""

from __future__ import annotations

from pathlib import Path

import diffusers
import torch
from diffusers import AutoencoderTiny, StableDiffusionXLImg2ImgPipeline, StableDiffusionXLPipeline
from huggingface_hub import HfApi, try_to_load_from_cache

from sdxl_optim.errors import SettingsError, Unsupported
from sdxl_optim.hosts.standalone.samplers import DTYPES, SAMPLERS

HUB_TIMEOUT = 10  # seconds


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
        raise Unsupported("Tiny VAE", f"{name} can't be had ({_one_line(error)}); the model's VAE is used") from None
    return vae.to(device).eval()


def use_sampler(pipe, name: str | None) -> None:
    """Give the pipeline the sampler of that name; None keeps the model's own."""
    if name:
        cls, changes = SAMPLERS[name]
        pipe.scheduler = getattr(diffusers, cls).from_config(pipe.scheduler.config, **changes)


def _load_pipeline(option: str, name: str, cls, device, dtype):
    try:
        if Path(name).is_file():
            pipe = cls.from_single_file(name, torch_dtype=dtype)
        else:
            pipe = _from_pretrained(cls, name, dtype)
    except (OSError, ValueError, TypeError, KeyError, _Unreachable) as error:
        allowed = "a folder in diffusers' format, a .safetensors file, or a name on the Hugging Face hub"
        raise SettingsError(option, name, f"{allowed} ({_one_line(error)})") from None
    return pipe.to(device)


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
        raise _Unreachable(f"not on this machine, and the hub answers: {_one_line(error)}") from None
    return True


def _one_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
