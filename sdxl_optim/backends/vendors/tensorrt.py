"""TensorRT through Torch-TensorRT (https://docs.pytorch.org/TensorRT/user_guide/compilation/torch_compile.html).

Engines hold the weights, so another LoRA needs another engine, and so does each kind of call and each size. It is
written to the library's API and has not been run here. An engine of NVIDIA's WebUI extension is none of ours: the host
runs the UNet by it, and the report says so.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from sdxl_optim.backends.api import Backend, Tensors
from sdxl_optim.backends.call.traced import traced
from sdxl_optim.backends.environment import Environment
from sdxl_optim.wording import Text


class TensorRT(Backend):
    """cache: folder for engines and for the timings of their tactics."""

    name = "tensorrt"
    bakes_weights = True

    def __init__(self, cache: Path | None = None):
        self._cache = cache

    def probe(self, environment: Environment) -> Text | None:
        if not environment.cuda or environment.rocm:
            return "needs an NVIDIA GPU"
        if "torch_tensorrt" not in environment.packages:
            return "needs the package torch-tensorrt"
        return None

    def prepare(self, body, inputs: Tensors, progress):
        import torch_tensorrt

        progress("TensorRT builds an engine")
        options = self._options(torch_tensorrt.dynamo.CompilationSettings, inputs[0].dtype)
        module = torch.compile(traced(body, inputs), backend="torch_tensorrt", dynamic=False, options=options)
        module(*inputs)
        return _Engine(module)

    def _options(self, settings, dtype: torch.dtype) -> dict[str, Any]:
        """The options that this version knows."""
        known = settings.__dataclass_fields__
        wanted: dict[str, Any] = {"truncate_double": True, "min_block_size": 1}
        if "use_explicit_typing" in known:
            wanted["use_explicit_typing"] = True
        else:
            wanted["enabled_precisions"] = {dtype, torch.float32}
        if self._cache is not None:
            folder = self._cache / "tensorrt"
            wanted |= {
                "cache_built_engines": True,
                "reuse_cached_engines": True,
                "engine_cache_dir": str(folder / "engines"),
                "timing_cache_path": str(folder / "timing.bin"),
            }
        return {name: value for name, value in wanted.items() if name in known or name == "engine_cache_dir"}

    def release(self) -> None:
        pass


class _Engine:
    nbytes = 0  # TensorRT's memory is outside of torch's count

    def __init__(self, module):
        self._module = module

    def __call__(self, body, inputs: Tensors) -> list[torch.Tensor]:
        return list(self._module(*inputs))
