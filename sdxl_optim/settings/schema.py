"""Every setting, declared once.

The UI's components, the API's checks, the infotext and its reading back, the command line and the documentation's
table are derived from these declarations by iterating over `fields()`.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any

from sdxl_optim.settings import presets
from sdxl_optim.settings.kinds import Declaration, Word, choice, group, slider, toggle

FieldPath = tuple[str, ...]  # from the root of the settings to one of them


def _start():
    return slider(0.0, 0.0, 1.0, 0.01, "start", "Fraction of the steps at which it begins.")


def _stop():
    return slider(1.0, 0.0, 1.0, 0.01, "stop", "Fraction of the steps at which it ends.")


@dataclass(frozen=True)
class FreeU:
    """FreeU, arXiv:2309.11497: the UNet's backbone is amplified, its skip connections' low frequencies attenuated."""

    enabled: bool = toggle(
        False,
        "FreeU",
        "Stronger structure and contrast at no cost in time.",
        words={"freeu": Word(True, "b1")},
    )
    version: int = choice(1, (1, 2), "version", "2 scales the backbone by its own local strength.")
    b1: float = slider(1.3, 0.0, 3.0, 0.01, "b1", "Backbone factor of the deepest resolution. 1 changes nothing.")
    b2: float = slider(1.4, 0.0, 3.0, 0.01, "b2", "Backbone factor of the second resolution.")
    s1: float = slider(0.9, 0.0, 3.0, 0.01, "s1", "Skip factor (low frequencies) of the deepest resolution.")
    s2: float = slider(0.2, 0.0, 3.0, 0.01, "s2", "Skip factor (low frequencies) of the second resolution.")
    start: float = _start()
    stop: float = _stop()


@dataclass(frozen=True)
class CfgCutoff:
    """Guidance switched off late: from step int(stop*n) on, only the cond rows are computed."""

    enabled: bool = toggle(
        False,
        "CFG cutoff",
        "Switches guidance off for the last steps, which then cost half. At CFG scale 1, where the negative prompt"
        " has no effect, it is off from the first step.",
        words={"cutoff": Word(True, "stop")},
    )
    stop: float = slider(0.75, 0.0, 1.0, 0.01, "stop", "Fraction of the steps after which guidance is off.")


@dataclass(frozen=True)
class DeepCache:
    """DeepCache, arXiv:2312.00858: the UNet's deep features are computed at some steps and kept for the next ones."""

    enabled: bool = toggle(
        False,
        "DeepCache",
        "Computes the whole UNet only at every Nth step.",
        words={"deepcache": Word(True, "cache_interval"), "branch": Word(True, "cache_branch_id")},
    )
    cache_interval: int = slider(
        3, 1, 10, 1, "interval", "One full step in this many. Higher is faster and changes more."
    )
    cache_branch_id: int = slider(
        0,
        0,
        11,
        1,
        "branch",
        "How much of the UNet still runs on cached steps: 0 is the least (fastest), up to the UNet's depth.",
    )
    mode: str = choice(
        "uniform",
        ("uniform", "nonuniform", "adaptive"),
        "mode",
        "Nonuniform puts the full steps closer together around a centre, adaptive where the model's calibration says.",
    )
    center: float = slider(
        0.3, 0.0, 1.0, 0.01, "center", "Nonuniform: fraction of the steps around which full steps gather."
    )
    power: float = slider(1.4, 1.0, 4.0, 0.05, "power", "Nonuniform: how strongly they gather. 1 spaces them evenly.")
    start: float = _start()
    stop: float = _stop()


@dataclass(frozen=True)
class Vae:
    """How the latents become a picture."""

    decoder: str = choice(
        "host",
        ("host", "full", "tiny"),
        "decoder",
        "Tiny decodes many times faster in far less memory, with softer fine detail.",
        off="host",
        words={"tiny": Word("tiny")},
    )
    precision: str = choice(
        "host",
        ("host", "auto", "fp16", "bf16", "fp32"),
        "precision",
        "Auto is bf16 where the card has it, else fp16 with an fp16-fix VAE, else fp32. Whatever is chosen here, a NaN"
        " is computed again in a safer one.",
        off="host",
    )
    tiling: bool = toggle(
        False,
        "tiling",
        "Decodes and encodes large pictures in tiles, in a fraction of the memory and somewhat slower.",
        words={"tiling": Word(True, "tile_size")},
    )
    tile_size: int = slider(
        512, 256, 2048, 64, "tile size", "In pixels. Larger tiles take more memory and differ less from the whole."
    )
    tile_norms: str = choice(
        "tile",
        ("tile", "picture"),
        "tile norms",
        "Picture takes the statistics of the norms from the whole picture: tiles look as decoded at once, for one more"
        " tile of work.",
    )


@dataclass(frozen=True)
class Backend:
    """How a UNet call is executed."""

    name: str = choice(
        "eager",
        ("eager", "cudagraph", "inductor", "onediff", "stable-fast", "tensorrt"),
        "Backend",
        "How the UNet's calls are run. Cudagraph launches each as one and is ready at once, the others compile first."
        " What can't run here is eager, and says so.",
        off="eager",
        words={name: Word(name) for name in ("cudagraph", "inductor", "onediff", "stable-fast", "tensorrt")},
    )
    attention: str = choice(
        "host",
        ("host", "sdpa"),
        "attention",
        "Sdpa is torch's own, where the WebUI was started with a slower one.",
        off="host",
        words={"sdpa": Word("sdpa")},
    )
    fp16_accumulation: bool = toggle(False, "fp16 accumulation", "Faster fp16 products on GeForce cards, less exact.")


@dataclass(frozen=True)
class Memory:
    """Where the weights lie."""

    offload: str = choice(
        "host",
        ("host", "staged", "model", "sequential"),
        "offload",
        "Weights wait in main memory while they are not needed. Staged keeps the UNet where it fits, model keeps one"
        " part at a time, sequential a few layers.",
        off="host",
        words={"staged": Word("staged", "budget"), "model": Word("model"), "sequential": Word("sequential")},
    )
    budget: float = slider(
        0.0, 0.0, 48.0, 0.1, "budget", "GB of the card that staged may fill, 0 for all that is free.", off=0.0
    )
    weights: str = choice(
        "host",
        ("host", "fp8"),
        "weights",
        "fp8 halves the UNet's weights, at some cost in speed and fine detail.",
        off="host",
        words={"fp8": Word("fp8")},
    )
    cudnn_tf32: str = choice(
        "host", ("host", "on", "off"), "cuDNN TF32", "Faster fp32 convolutions, less exact.", off="host"
    )
    matmul_tf32: str = choice(
        "host", ("host", "on", "off"), "matmul TF32", "Faster fp32 products, less exact.", off="host"
    )


@dataclass(frozen=True)
class Hires:
    """The second pass of hires fix: the same settings, none, or its own."""

    mode: str = choice("same", ("same", "off", "own"), "pass", "What the second pass of hires fix uses.")
    freeu: FreeU = group(FreeU, "FreeU")
    cfg_cutoff: CfgCutoff = group(CfgCutoff, "CFG cutoff")
    deepcache: DeepCache = group(DeepCache, "DeepCache")


@dataclass(frozen=True)
class Settings:
    """What the user asked for. Build it with `from_dict` or `from_flat`; both check every value."""

    enabled: bool = toggle(False, "SDXL Optim", "Switches everything below on.")
    preset: str | None = choice(
        None,
        presets.known,
        "preset",
        "Settings by name. It fills what is not set otherwise.",
        nullable=True,
        off=None,
    )
    steps: int | None = slider(
        None, 1, 150, 1, "steps", "A number here replaces the request's steps.", nullable=True, in_ui=False, off=None
    )
    freeu: FreeU = group(FreeU, "FreeU")
    cfg_cutoff: CfgCutoff = group(CfgCutoff, "CFG cutoff")
    deepcache: DeepCache = group(DeepCache, "DeepCache")
    vae: Vae = group(Vae, "VAE")
    backend: Backend = group(Backend, "Backend")
    memory: Memory = group(Memory, "Memory")
    hires: Hires = group(Hires, "Hires")

    def for_hires(self) -> Settings:
        """The settings of hires fix's second pass."""
        if self.hires.mode == "same":
            return self
        own = self.hires if self.hires.mode == "own" else Hires()
        return dataclasses.replace(
            self, preset=None, freeu=own.freeu, cfg_cutoff=own.cfg_cutoff, deepcache=own.deepcache
        )


INFOTEXT_PREFIX = "SDXL Optim"


@dataclass(frozen=True)
class Field:
    """A setting in its place: `path` from the root, its name in errors, and its infotext key."""

    path: FieldPath
    declaration: Declaration
    labels: tuple[str, ...]

    @property
    def name(self) -> str:
        return ".".join(self.path)

    @property
    def title(self) -> str:
        """Its label with its group's, as in "Hires FreeU b1"."""
        return " ".join(dict.fromkeys(self.labels))

    @property
    def infotext_key(self) -> str:
        return " ".join(dict.fromkeys((INFOTEXT_PREFIX, *self.labels)))


@functools.cache
def fields() -> tuple[Field, ...]:
    """All settings in declaration order. New ones go to the end of their group."""
    return tuple(_walk(Settings, (), ()))


def _walk(cls: type, path: FieldPath, labels: tuple[str, ...]):
    for f in dataclasses.fields(cls):
        if "declaration" in f.metadata:
            declaration = f.metadata["declaration"]
            yield Field((*path, f.name), declaration, (*labels, declaration.label))
        else:
            yield from _walk(type(f.default), (*path, f.name), (*labels, f.metadata["label"]))


def get(settings: Settings, path: FieldPath) -> Any:
    return functools.reduce(getattr, path, settings)


def field_named(name: str) -> Field:
    """The setting of that name, as "memory.offload". Raises KeyError."""
    return {f.name: f for f in fields()}[name]


def choices_that_act(name: str) -> list[str]:
    """The choices of a setting that ask for something, which its default does not; empty for a switch."""
    d = field_named(name).declaration
    return [choice for choice in d.choices if choice != d.default]


def acts(settings: Settings, name: str) -> bool:
    """Whether the setting of that name asks for something other than its default."""
    field_ = field_named(name)
    return get(settings, field_.path) != field_.declaration.default
