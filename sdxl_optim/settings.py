"""Every setting, declared once.

A field's declaration is the only place that knows its default, range, label, help and infotext key. The UI's
components, the API's checks, the infotext and its reading back, the command line and the documentation's table are
derived from it by iterating over `fields()`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sdxl_optim import presets
from sdxl_optim.errors import SettingsError

Path = tuple[str, ...]


@dataclass(frozen=True)
class Declaration:
    """What is known of one setting. `kind` is toggle, slider or choice."""

    kind: str
    default: Any
    label: str
    help: str
    lo: float | None = None
    hi: float | None = None
    step: float | None = None
    choices: Sequence = ()
    nullable: bool = False
    in_ui: bool = True

    @property
    def allowed(self) -> str:
        if self.kind == "toggle":
            text = "true or false"
        elif self.kind == "choice":
            text = ", ".join(map(str, self.choices))
        else:
            text = f"{'an integer' if self.integer else 'a number'} from {self.lo:g} to {self.hi:g}"
        return f"{text}, or null" if self.nullable else text

    @property
    def integer(self) -> bool:
        return self.kind == "slider" and isinstance(self.step, int)

    def check(self, name: str, value: Any) -> Any:
        """Return `value` in the declared type. Raises SettingsError."""
        if self.nullable and (value is None or value == presets.NONE):
            return None
        if self.kind == "toggle":
            ok = isinstance(value, bool)
        elif self.kind == "choice":
            ok = any(value == c and type(value) is type(c) for c in self.choices)
        else:
            ok = not isinstance(value, bool) and isinstance(value, (int, float)) and self.lo <= value <= self.hi
            ok = ok and (not self.integer or value == int(value))
        if not ok:
            raise SettingsError(name, value, self.allowed)
        return (int(value) if self.integer else float(value)) if self.kind == "slider" else value

    def read(self, name: str, text: str) -> Any:
        """The value written as `text` (infotext, command line, X/Y/Z cell). Raises SettingsError."""
        text = str(text).strip()
        try:
            if self.kind == "toggle":
                value = {"true": True, "false": False, "on": True, "off": False}[text.lower()]
            elif self.nullable and text == presets.NONE:
                value = None
            elif self.kind == "choice":
                value = next(c for c in self.choices if str(c) == text)
            else:
                value = float(text)
        except (KeyError, StopIteration, ValueError):
            raise SettingsError(name, text, self.allowed) from None
        return self.check(name, value)


def _setting(declaration: Declaration):
    return field(default=declaration.default, metadata={"declaration": declaration})


def toggle(default: bool, label: str, help: str, **more):
    return _setting(Declaration("toggle", default, label, help, **more))


def slider(default, lo, hi, step, label: str, help: str, **more):
    return _setting(Declaration("slider", default, label, help, lo, hi, step, **more))


def choice(default, choices: Sequence, label: str, help: str, **more):
    return _setting(Declaration("choice", default, label, help, choices=choices, **more))


def group(cls: type, label: str):
    return field(default=cls(), metadata={"label": label})


def _start():
    return slider(0.0, 0.0, 1.0, 0.01, "start", "Fraction of the steps at which it begins.")


def _stop():
    return slider(1.0, 0.0, 1.0, 0.01, "stop", "Fraction of the steps at which it ends.")


@dataclass(frozen=True)
class FreeU:
    """FreeU, arXiv:2309.11497: the UNet's backbone is amplified, its skip connections' low frequencies attenuated."""

    enabled: bool = toggle(False, "FreeU", "Stronger structure and contrast at no cost in time.")
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
    )
    stop: float = slider(0.75, 0.0, 1.0, 0.01, "stop", "Fraction of the steps after which guidance is off.")


@dataclass(frozen=True)
class DeepCache:
    """DeepCache, arXiv:2312.00858: the UNet's deep features are computed at some steps and kept for the next ones."""

    enabled: bool = toggle(False, "DeepCache", "Computes the whole UNet only at every Nth step.")
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
    )
    precision: str = choice(
        "host",
        ("host", "auto", "fp16", "bf16", "fp32"),
        "precision",
        "Auto is bf16 where the card has it, else fp16 with an fp16-fix VAE, else fp32. Whatever is chosen here, a NaN"
        " is computed again in a safer one.",
    )
    tiling: bool = toggle(
        False, "tiling", "Decodes and encodes large pictures in tiles, in a fraction of the memory and somewhat slower."
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
    )
    attention: str = choice(
        "host", ("host", "sdpa"), "attention", "Sdpa is torch's own, where the WebUI was started with a slower one."
    )
    fp16_accumulation: bool = toggle(
        False, "fp16 accumulation", "Faster fp16 products on GeForce cards, less exact."
    )


@dataclass(frozen=True)
class Memory:
    """Where the weights lie."""

    offload: str = choice(
        "host",
        ("host", "staged", "model", "sequential"),
        "offload",
        "Weights wait in main memory while they are not needed. Staged keeps the UNet where it fits, model keeps one"
        " part at a time, sequential a few layers.",
    )
    budget: float = slider(
        0.0, 0.0, 48.0, 0.1, "budget", "GB of the card that staged may fill, 0 for all that is free."
    )
    weights: str = choice(
        "host", ("host", "fp8"), "weights", "fp8 halves the UNet's weights, at some cost in speed and fine detail."
    )
    cudnn_tf32: str = choice("host", ("host", "on", "off"), "cuDNN TF32", "Faster fp32 convolutions, less exact.")
    matmul_tf32: str = choice("host", ("host", "on", "off"), "matmul TF32", "Faster fp32 products, less exact.")


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
        None, presets.Names(), "preset", "Settings by name. It fills what is not set otherwise.", nullable=True
    )
    steps: int | None = slider(
        None, 1, 150, 1, "steps", "A number here replaces the request's steps.", nullable=True, in_ui=False
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
        parts = {"freeu": own.freeu, "cfg_cutoff": own.cfg_cutoff, "deepcache": own.deepcache}
        return dataclasses.replace(self, preset=None, **parts)


INFOTEXT_PREFIX = "SDXL Optim"


@dataclass(frozen=True)
class Field:
    """A setting in its place: `path` from the root, its name in errors, and its infotext key."""

    path: Path
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


def _walk(cls: type, path: Path, labels: tuple[str, ...]):
    for f in dataclasses.fields(cls):
        if "declaration" in f.metadata:
            declaration = f.metadata["declaration"]
            yield Field((*path, f.name), declaration, (*labels, declaration.label))
        else:
            yield from _walk(type(f.default), (*path, f.name), (*labels, f.metadata["label"]))


def get(settings: Settings, path: Path) -> Any:
    return functools.reduce(getattr, path, settings)


def flatten(settings: Settings) -> dict[Path, Any]:
    return {f.path: get(settings, f.path) for f in fields()}


def from_flat(values: dict[Path, Any]) -> Settings:
    """Settings from {path: value}; what is missing keeps its default. Raises SettingsError."""
    checked = {f.path: f.declaration.check(f.name, values[f.path]) for f in fields() if f.path in values}
    return _build(Settings, (), checked)


def _build(cls: type, path: Path, values: dict[Path, Any]):
    parts = {}
    for f in dataclasses.fields(cls):
        here = (*path, f.name)
        if "declaration" not in f.metadata:
            parts[f.name] = _build(type(f.default), here, values)
        elif here in values:
            parts[f.name] = values[here]
    return cls(**parts)


def from_dict(given: Any) -> Settings:
    """Settings from the API's dict, of which any subset may be given; `enabled` defaults to true there, and what is not
    given comes from the preset, if one is.

    Raises SettingsError for an unknown key, a wrong type or a value out of range.
    """
    return from_given({("enabled",): True, **read_dict(given)})


def read_dict(given: Any) -> dict[Path, Any]:
    """{path: value} of what the API's dict holds, unchecked. Raises SettingsError for an unknown key."""
    if not isinstance(given, dict):
        raise SettingsError("settings", given, "an object with any of: " + _names(Settings))
    return _read_dict(Settings, (), given)


def from_given(values: dict[Path, Any]) -> Settings:
    """Settings from what the user set and, for the rest, what the preset that is named among it has. Raises
    SettingsError."""
    return from_flat({**preset_values(values.get(("preset",))), **values})


def preset_values(name: str | None) -> dict[Path, Any]:
    """{path: value} of what the preset sets; nothing where there is none of that name."""
    preset = presets.find(name) if isinstance(name, str) else None
    return read_dict(preset.settings) if preset else {}


def _names(cls: type) -> str:
    return ", ".join(f.name for f in dataclasses.fields(cls))


def _read_dict(cls: type, path: Path, given: dict) -> dict[Path, Any]:
    known = {f.name: f for f in dataclasses.fields(cls)}
    values: dict[Path, Any] = {}
    for key, value in given.items():
        here = (*path, str(key))
        if key not in known:
            raise SettingsError(".".join(here), value, f"{'.'.join(path) or 'settings'} has {_names(cls)}")
        if "declaration" in known[key].metadata:
            values[here] = value
            continue
        inner = type(known[key].default)
        if inner is Hires:
            values.update(_read_hires(here, value))
        elif isinstance(value, dict):
            values.update(_read_dict(inner, here, value))
        else:
            raise SettingsError(".".join(here), value, f"an object with any of: {_names(inner)}")
    return values


def _read_hires(path: Path, value: Any) -> dict[Path, Any]:
    if isinstance(value, str) and value in ("same", "off"):
        return {(*path, "mode"): value}
    if isinstance(value, dict):
        return {(*path, "mode"): "own", **_read_dict(Hires, path, value)}
    raise SettingsError(".".join(path), value, "same, off, or an object with any of: freeu, cfg_cutoff, deepcache")


def to_dict(settings: Settings) -> dict:
    """The API's dict of these settings; `from_dict` reads it back to the same settings."""
    result = dataclasses.asdict(settings)
    if settings.hires in (Hires(mode="same"), Hires(mode="off")):
        result["hires"] = settings.hires.mode
    return result


def to_sparse_dict(settings: Settings) -> dict:
    """The API's dict of what differs from the defaults."""
    result: dict = {}
    for field_, value in changed(settings).items():
        inner = result
        for part in field_.path[:-1]:
            inner = inner.setdefault(part, {})
        inner[field_.path[-1]] = value
    if "hires" in result and settings.hires.mode != "own":
        result["hires"] = settings.hires.mode
    elif "hires" in result:
        del result["hires"]["mode"]
    return result


def changed(settings: Settings) -> dict[Field, Any]:
    """The settings that differ from their declared default."""
    return {f: value for f in fields() if (value := get(settings, f.path)) != f.declaration.default}
