"""A demo model: SDXL's layout with 10 million parameters, trained on coloured shapes; its card is README.md here.

It shows offline, in seconds and on a CPU what the optimisations do to a trained denoiser. Names are imported on use, so
that the command line starts without torch; `write_webui` and `caption_check` need neither diffusers nor transformers.
"""

from importlib import import_module

_MODULES = {
    "captions": ("held_prompts",),
    "check": ("caption_check",),
    "export": ("NAME", "WEIGHTS", "write_diffusers", "write_diffusers_refiner", "write_tiny_vae", "write_webui"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str):
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULE_OF])
