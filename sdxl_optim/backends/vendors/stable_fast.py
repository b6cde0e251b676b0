"""stable-fast (https://github.com/chengzeyi/stable-fast): the call traced by TorchScript, with its fused operations.

Its own CUDA graphs are off, as ours go around it, and so is its memory format, which would change the layout of the
host's weights. It is written to the library's API and has not been run here, as that needs its own CUDA build.
"""

from __future__ import annotations

from pathlib import Path

from sdxl_optim.backends.api import Backend, Tensors
from sdxl_optim.backends.call.traced import CallModule
from sdxl_optim.backends.cudagraph import CudaGraph
from sdxl_optim.backends.environment import Environment
from sdxl_optim.wording import Text


class StableFast(Backend):
    name = "stable-fast"
    bakes_weights = False  # preserve_parameters

    def __init__(self, cache: Path | None = None):
        self._graphs = CudaGraph()

    def probe(self, environment: Environment) -> Text | None:
        if not environment.cuda or environment.rocm:
            return "needs an NVIDIA GPU"
        if "sfast" not in environment.packages:
            return "needs the package stable-fast"
        return None

    def prepare(self, body, inputs: Tensors, progress):
        from sfast.compilers.diffusion_pipeline_compiler import CompilationConfig, compile_unet

        from sdxl_optim.backends.environment import read_environment

        config = CompilationConfig.Default()
        config.memory_format = None
        config.preserve_parameters = True
        config.enable_cuda_graph = False
        config.enable_triton = "triton" in read_environment().packages
        progress("stable-fast traces the call")
        module = compile_unet(CallModule(body).eval(), config)
        module.forward(*inputs)
        return self._graphs.record(lambda tensors: list(module.forward(*tensors)), inputs)

    def release(self) -> None:
        self._graphs.release()
