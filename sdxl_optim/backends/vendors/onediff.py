"""OneDiff (https://github.com/siliconflow/onediff): its compiler front end, with whichever of its runtimes is there.

nexfort is given the call as a graph. oneflow converts the UNet's own classes, so it runs only calls without FreeU and
DeepCache; it keeps its compiled code in a file a kind of call. Neither runtime has a release on PyPI for a current
torch (`oneflow` there is a placeholder): this is written to the front end's API and tested with the tests' own runtime.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from sdxl_optim.backends.api import Backend, CannotPrepare, Tensors
from sdxl_optim.backends.call.traced import traced
from sdxl_optim.backends.cudagraph import CudaGraph
from sdxl_optim.backends.environment import Environment
from sdxl_optim.wording import Text

RUNTIMES = ("nexfort", "oneflow")
NO_RUNTIME = "needs one of onediff's runtimes, nexfort or oneflow, of which neither is installed"
OPTIONS = {"nexfort": {"mode": "max-optimize:max-autotune:low-precision"}}


class OneDiff(Backend):
    """cache: folder for compiled graphs. runtime: a name in OneDiff's registry; None takes what is installed."""

    name = "onediff"

    def __init__(self, cache: Path | None = None, runtime: str | None = None):
        self._cache, self._runtime = cache, runtime
        self._graphs = CudaGraph()

    def probe(self, environment: Environment) -> Text | None:
        if not environment.cuda:
            return "needs a CUDA device"
        if "onediff" not in environment.packages:
            return "needs the package onediff"
        if not self._installed(environment):
            return NO_RUNTIME
        return None

    def _installed(self, environment: Environment) -> str | None:
        return self._runtime or next((name for name in RUNTIMES if name in environment.packages), None)

    def prepare(self, body, inputs: Tensors, progress):
        from onediff.infer_compiler import compile

        from sdxl_optim.backends.environment import read_environment

        runtime = self._installed(read_environment())
        if runtime is None:
            raise CannotPrepare(NO_RUNTIME)
        progress(f"onediff compiles by {runtime}")
        if runtime == "oneflow":
            return _ByOneflow(compile(_plain(body).unet, backend=runtime), self._file(body, inputs))
        module = compile(traced(body, inputs), backend=runtime, options=OPTIONS.get(runtime))
        module(*inputs)
        call = _Call(module)
        if not inputs[0].is_cuda:
            return call
        return self._graphs.record(lambda tensors: call(None, tensors), inputs)

    def _file(self, body, inputs: Tensors) -> Path | None:
        if self._cache is None:
            return None
        shapes = [(tuple(t.shape), str(t.dtype)) for t in inputs]
        digest = hashlib.sha256(f"{body.unet} {shapes}".encode()).hexdigest()[:16]
        return self._cache / "onediff" / f"{digest}.graph"

    def release(self) -> None:
        self._graphs.release()


def _plain(body):
    if body.kind.techniques:
        raise CannotPrepare("oneflow runs neither FreeU nor DeepCache")
    return body


class _Call:
    nbytes = 0

    def __init__(self, module):
        self._module = module

    def __call__(self, body, inputs: Tensors):
        return list(self._module(*inputs))


class _ByOneflow:
    """A UNet that oneflow runs. Its graph is loaded from `file`, or saved there after the first call."""

    nbytes = 0

    def __init__(self, module, file: Path | None):
        self._module, self._file = module, file
        if file is not None and file.is_file():
            module.load_graph(str(file))
            self._file = None

    def __call__(self, body, inputs: Tensors):
        outputs = body.run(self._module, inputs)
        if self._file is not None:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            self._module.save_graph(str(self._file))
            self._file = None
        return outputs
